"""Strategies: what each is built with, and what it refuses before anything starts."""

from datetime import timedelta

import pytest
from lightning.pytorch.strategies import FSDPStrategy

from aepo_lightning.app.build import build_strategy
from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.sharding.fsdp1 import check_strategy
from aepo_lightning.policy.sharding.options import ShardingOptions
from tests.support.composed import composed


@pytest.mark.parametrize("name", ["ddp", "fsdp", "fsdp1"])
def test_ranks_wait_for_the_longest_rollouts_of_another(name):
    strategy = build_strategy(composed(f"strategy={name}", "trainer=gpus"))
    # torch's own is half an hour, which the slowest rank's generation may exceed.
    assert strategy._timeout == timedelta(hours=2)


def test_fsdp1_is_lightnings_own_strategy_with_settings_that_work():
    strategy = build_strategy(composed("strategy=fsdp1", "trainer=gpus"))
    assert type(strategy) is FSDPStrategy
    check_strategy(strategy, ShardingOptions(), defer_gradient_sync=False)


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["trainer.accelerator=cpu"], "`trainer.accelerator` must be gpu for `strategy=fsdp1`, but got cpu"),
        (["trainer=gpus", "trainer.precision=bf16-true"], "`trainer.precision` must be 32-true .* got bf16-true"),
        (
            ["trainer=gpus", "trainer.precision=bf16-mixed"],
            "`trainer.precision` must be 32-true .* got bf16-mixed",
        ),
    ],
    ids=["cpu", "bf16-true", "bf16-mixed"],
)
def test_what_fsdp1_cannot_run_is_refused(overrides, match):
    with pytest.raises(ConfigError, match=match):
        build_strategy(composed("strategy=fsdp1", *overrides))


def test_the_module_leaves_offloading_and_resharding_to_be_set():
    module = composed("module.cpu_offload=true", "module.reshard_after_forward=false").module
    assert (module.cpu_offload, module.reshard_after_forward) == (True, False)
