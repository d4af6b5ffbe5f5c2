"""Publishing the weights of a network to an engine: all of them, or only an adapter."""

import itertools
from hashlib import blake2b
from weakref import WeakKeyDictionary

from torch import nn
from torch.distributed.tensor import DTensor

from aepo_lightning.contracts.engine import AdapterEngine, Engine
from aepo_lightning.distributed.collectives import all_reduce
from aepo_lightning.policy.lora import adapted_layers, is_adapter
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.publishing.gather import base_weights, low_rank_updates, named_weights

_count = itertools.count()
_numbers: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Tells networks apart, also from those that lived in the same memory before."""


def publish(network: PolicyNetwork, engine: Engine, version: int) -> None:
    """Give the engine the weights of the network; of one with an adapter, only the adapter if the engine has the rest.

    Args:
        network: The policy that is being trained. Collective under FSDP2.
        engine: Receives the weights and forgets its cached prefixes.
        version: Number of optimiser steps that the weights have seen.
    """
    adapted = [f"{name}.weight" for name in adapted_layers(network.model)]
    if not adapted or not isinstance(engine, AdapterEngine) or engine.base is None:
        engine.load_weights(named_weights(network), version)
        return
    base = _base_name(network)
    if all_reduce([float(engine.base != base)], "max")[0]:  # gathering is collective: one rank's need is everyone's
        engine.load_base(base_weights(network), adapted, base)
    engine.load_adapter(low_rank_updates(network), version)


def _base_name(network: PolicyNetwork) -> str:
    """Return a name of the frozen weights that changes whenever they may have: they were replaced or written to."""
    frozen = [p.detach() for name, p in network.named_parameters() if not is_adapter(name)]
    local = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in frozen]
    number = _numbers.setdefault(network, next(_count))
    marks = [number, *((weight.data_ptr(), weight._version) for weight in local)]
    return blake2b(repr(marks).encode(), digest_size=8).hexdigest()
