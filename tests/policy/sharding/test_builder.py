"""Where a network lives, and which settings cannot train it there."""

from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy

from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.sharding.builder import NetworkBuilder, place_of
from aepo_lightning.policy.sharding.fsdp1 import ExactPrecision, check_strategy
from aepo_lightning.policy.sharding.fsdp2 import clip_gradients, forward_context, gradient_sync, is_sharded
from aepo_lightning.policy.sharding.options import ShardingOptions
from tests.support.training import (
    built_module,
    flat,
    make_datamodule,
    make_module,
    make_run,
    make_trainer,
    small_policy,
)

PLAIN = ShardingOptions()


def test_without_a_strategy_a_network_is_whole():
    network = NetworkBuilder(policy=small_policy()).trained(place_of(None, None, PLAIN, False))
    assert not is_sharded(network)
    assert network.training
    assert torch.equal(flat(network.parameters()), flat(small_policy().build_model().parameters()))


def test_the_reference_is_frozen_and_evaluates():
    reference = NetworkBuilder(policy=small_policy()).reference(None)
    assert not reference.training
    assert not any(parameter.requires_grad for parameter in reference.parameters())


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_a_precision_that_rounds_the_batches_is_refused(tmp_path, precision):
    module = make_module()
    run = make_run(tmp_path, module, make_datamodule(module.policy), precision=precision)
    with pytest.raises(ConfigError, match=f"`trainer.precision` must be one of .*, but got {precision}"):
        run.fit()


def test_autocast_scores_as_it_trains(tmp_path):
    assert isinstance(forward_context(None), nullcontext)
    with forward_context(make_trainer(tmp_path, precision="bf16-mixed")):
        assert torch.is_autocast_enabled("cpu")


def test_offloading_without_shards_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"`module.cpu_offload` must go with `strategy=fsdp` or `fsdp1`"):
        place_of(make_trainer(tmp_path), None, ShardingOptions(cpu_offload=True), False)


def test_one_process_clips_by_the_norm_of_all_gradients():
    network = built_module().network
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    num = sum(parameter.numel() for parameter in network.parameters())
    with gradient_sync(network, False):
        norm = clip_gradients(network, 1.0)
    assert float(norm) == pytest.approx(num**0.5)
    # torch adds 1e-6 to the norm, and sums in float32.
    assert float(flat(parameter.grad for parameter in network.parameters()).norm()) == pytest.approx(1.0, abs=1e-5)


# FSDP1 ---------------------------------------------------------------------------------------------------------------


def strategy_of(**options):
    return FSDPStrategy(**{"precision_plugin": ExactPrecision(), **options})


def test_plain_settings_of_fsdp1_are_fine():
    check_strategy(strategy_of(), PLAIN, defer_gradient_sync=False)
    check_strategy(strategy_of(), ShardingOptions(cpu_offload=True, mixed_precision=True), defer_gradient_sync=True)


@pytest.mark.parametrize(
    ("strategy", "options", "match"),
    [
        ({"precision_plugin": None}, {}, r"`precision_plugin` .* must be `ExactPrecision\(\)`, but got FSDPPrecision"),
        ({"use_orig_params": False}, {}, "must leave wrapping to the module, but got .*use_orig_params"),
        (
            {"auto_wrap_policy": {torch.nn.Linear}},
            {},
            "must leave wrapping to the module, but got .*auto_wrap_policy",
        ),
        ({"activation_checkpointing_policy": {torch.nn.Linear}}, {}, "Set `module.gradient_checkpointing=true`"),
        ({"sharding_strategy": "SHARD_GRAD_OP"}, {}, "must be FULL_SHARD and true, but got SHARD_GRAD_OP and True"),
        ({}, {"reshard_after_forward": False}, "must be FULL_SHARD and true, but got FULL_SHARD and False"),
        ({}, {"cpu_offload": True}, "must go with `module.defer_gradient_sync=true` for `strategy=fsdp1`"),
    ],
    ids=["precision", "orig_params", "wrapping", "checkpointing", "sharding", "reshard", "offload"],
)
def test_what_fsdp1_cannot_do_is_refused(strategy, options, match):
    with pytest.raises(ConfigError, match=match):
        check_strategy(strategy_of(**strategy), ShardingOptions(**options), defer_gradient_sync=False)


def test_a_batch_stays_as_it_is_under_fsdp1():
    batch = object()
    assert ExactPrecision().convert_input(batch) is batch
