"""Networks with adapters that have learnt something, for tests."""

import torch

from aepo_lightning.policy.lora import LoRA, adapted_layers, factors
from aepo_lightning.policy.network import PolicyNetwork
from tests.support.builders import tiny_policy

SMALL = LoRA(rank=3, alpha=6.0, target_modules=("q_proj", "v_proj", "down_proj"), seed=5)
LARGE = LoRA(rank=2)


def adapted_network(policy=None, lora=SMALL, **options) -> PolicyNetwork:
    model = (policy or tiny_policy()).build_model()
    lora.inject(model)
    network = PolicyNetwork(model, **options)
    teach(network)
    return network


@torch.no_grad()
def teach(network, seed=1, scale=0.1):
    """Give every B, which is zero at first, random numbers. Sharded ones get their rows of the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    for layer in adapted_layers(network.model).values():
        up = factors(layer)[1]
        values = scale * torch.randn(up.shape, generator=generator)
        up.copy_(values if type(up.data) is torch.Tensor else _sharded(values, up))


def _sharded(values, like):
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(values, like.device_mesh, like.placements, src_data_rank=None)


def merged_by_hand(network) -> dict[str, torch.Tensor]:
    """Plain weights of an unsharded network, each sum written out."""
    found = {}
    for name, parameter in network.model.named_parameters():
        if "lora_" not in name:
            weight = parameter.detach().clone()
            if ".base_layer.weight" in name:
                layer = network.model.get_submodule(name.removesuffix(".base_layer.weight"))
                down, up = (matrix.detach() for matrix in factors(layer))
                scale = layer.scaling["default"]
                weight = (weight.float() + scale * (up.float() @ down.float())).to(weight.dtype)
            found[name.replace(".base_layer", "")] = weight
    return found
