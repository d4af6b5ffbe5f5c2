from dataclasses import replace

import pytest

from aepo_lightning.app.plan import make_plan
from aepo_lightning.app.plan.advice import advise
from tests.support.planning import SMALL, make_settings

WIDE = {**SMALL, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 4096}


def settings(**changes):
    own = {"architecture": WIDE, "engine_memory_fraction": 0.0, "overhead_gib": 0.0, "max_response_tokens": 156}
    return make_settings(**(own | changes))


def just_too_small(run, fitting):
    """Devices with room for one run and not for the other."""
    needed = make_plan(fitting).peak_bytes
    assert make_plan(run).peak_bytes > needed
    return replace(run, gpu_memory_gib=(needed + 1) / 2**30)


def test_says_nothing_about_what_fits():
    assert advise(make_plan(settings())) == ()


@pytest.mark.parametrize(
    ("wasteful", "saving", "expected"),
    [
        ({"is_checkpointed": False}, {"is_checkpointed": True}, "`module.gradient_checkpointing=true`"),
        (
            {"is_gradient_sync_deferred": True},
            {"is_gradient_sync_deferred": False},
            "`module.defer_gradient_sync=false`",
        ),
        ({"is_mixed_precision": False}, {"is_mixed_precision": True}, "`module.mixed_precision=true`"),
        (
            {"is_resharded_after_forward": False},
            {"is_resharded_after_forward": True},
            "`module.reshard_after_forward=true`",
        ),
        (
            {"micro_batch_tokens": 20_000},
            {"micro_batch_tokens": 256},
            "`experience.max_tokens_per_micro_batch=256`",
        ),
        ({"sharding": "replicated"}, {"sharding": "fsdp2"}, "`strategy=fsdp`"),
        ({}, {"is_cpu_offloaded": True}, "`module.cpu_offload=true`"),
        ({}, {"adapter_rank": 32}, "`adapter=lora`"),
        ({}, {"num_gpus": 8}, "8 GPUs"),
    ],
    ids=["checkpointing", "sync", "precision", "reshard", "tokens", "sharding", "offload", "adapter", "gpus"],
)
def test_names_the_setting_that_makes_it_fit(wasteful, saving, expected):
    run = settings(**wasteful)
    advice = advise(make_plan(just_too_small(run, replace(run, **saving))))
    assert any(text.startswith(expected) for text in advice)


def test_every_advice_was_planned_and_fits():
    run = settings(is_checkpointed=False)
    small = just_too_small(run, replace(run, is_checkpointed=True))
    for text in advise(make_plan(small)):
        assert float(text.partition(": ")[2].partition(" GiB")[0]) <= round(small.gpu_memory_gib, 1)


def test_changes_that_help_together_only_are_advised_together():
    run = settings(is_checkpointed=False, is_mixed_precision=False, num_gpus=512)
    both = replace(run, is_checkpointed=True, is_mixed_precision=True, micro_batch_tokens=256)
    (advice,) = [text for text in advise(make_plan(just_too_small(run, both))) if "GPUs" not in text]
    assert advice.startswith("`module.gradient_checkpointing=true`, `module.mixed_precision=true`, `experience.")


def test_an_engine_with_too_large_a_share_gets_less():
    # Without an engine the rollout needs 0.08 GiB of 1: eighteen twentieths are left.
    run = settings(engine_memory_fraction=0.99, engine_workspace_gib=0.0)
    rest = make_plan(run).rollout_bytes - make_plan(run).engine.share_bytes
    assert 0.05 < rest / 2**30 < 0.1
    assert advise(make_plan(run))[0].startswith("`engine.gpu_memory_utilization=0.9`")


def test_gives_no_advice_where_nothing_helps():
    assert advise(make_plan(settings(gpu_memory_gib=1e-6))) == ()


def test_advice_to_offload_says_what_the_host_needs():
    run = settings()
    advice = advise(make_plan(just_too_small(run, replace(run, is_cpu_offloaded=True))))
    (offload,) = [text for text in advice if "cpu_offload" in text]
    assert offload.endswith("GiB of host memory on each node")


def test_fsdp1_offloads_deferred_gradients_only():
    offloaded = {"sharding": "fsdp1", "is_cpu_offloaded": True, "is_gradient_sync_deferred": True}
    advice = advise(
        make_plan(just_too_small(settings(sharding="fsdp1", num_gpus=2), settings(num_gpus=2, **offloaded)))
    )
    assert advice[0].startswith("`module.cpu_offload=true`, `module.defer_gradient_sync=true` (slower steps)")
