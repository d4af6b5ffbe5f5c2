import io
from dataclasses import replace

import pytest
import yaml
from rich.console import Console

from aepo_lightning.app.plan import make_plan, render_plan
from aepo_lightning.app.plan.model_size import GIB
from aepo_lightning.errors import ConfigError
from tests.support.paths import CONF
from tests.support.planning import make_settings

MODELS = CONF / "model"


def lines_by_name(**changes):
    return {line.name: line for line in make_plan(make_settings(**changes)).lines}


@pytest.mark.parametrize(
    ("name", "update_bytes", "rollout_bytes"),
    [
        # What test_memory works out for the last layer; 4 * 143776 / 4
        ("weights", 143_776, 143_776),
        ("AdamW states", 287_552, 287_552),
        ("gradients", 143_776, 0),
        # The largest unit gathered for a publication, and what it was gathered into: 2 * 2 * 55472
        ("gathered weights", 287_552, 221_888),
        ("gradient buffers", 57_344, 0),
        ("activations", 6_434_400, 0),
        # asleep, then half of 1 GiB = 2^29
        ("engine", 0, 536_870_912),
        # 0.125 GiB = 2^27
        ("overhead", 134_217_728, 134_217_728),
    ],
)
def test_every_line_of_the_small_plan_equals_its_arithmetic(name, update_bytes, rollout_bytes):
    line = lines_by_name()[name]
    assert (line.update_bytes, line.rollout_bytes) == (update_bytes, rollout_bytes)


def test_phases_add_up_and_the_peak_is_the_larger_one():
    plan = make_plan(make_settings())
    # 7354400 of the last layer + 134217728
    assert plan.update_bytes == 141_572_128
    # 143776 + 287552 + 221888 + 134217728 + 536870912
    assert plan.rollout_bytes == 671_741_856
    assert (plan.peak_bytes, plan.peak_phase, plan.largest_line.name) == (671_741_856, "rollout", "engine")


def test_the_update_is_the_peak_without_an_engine_on_the_gpu():
    plan = make_plan(make_settings(engine_memory_fraction=0.0))
    assert plan.engine is None
    assert "engine" not in {line.name for line in plan.lines}
    assert (plan.peak_bytes, plan.peak_phase, plan.largest_line.name) == (141_572_128, "update", "overhead")
    assert plan.update.name == "last layer"


def test_a_reference_model_stays_in_both_phases():
    line = lines_by_name(has_reference=True)["reference model"]
    assert (line.update_bytes, line.rollout_bytes) == (143_776, 143_776)


def test_an_engine_that_cannot_sleep_keeps_weights_and_cache_in_the_update():
    line = lines_by_name(engine_sleeps=False)["engine"]
    assert (line.update_bytes, line.rollout_bytes) == (2**28, 2**29)


def test_a_share_in_bytes_stands_in_place_of_a_fraction_and_may_exceed_the_device():
    plan = make_plan(make_settings(engine_memory_fraction=0.0, engine_share_bytes=2**31, engine_number_bytes=4))
    # 4 * 143776 bytes of weights; 2 layers * 2 heads of 24 * 2 * 4 bytes a token; a quarter of a GiB is workspace.
    assert (plan.engine.share_bytes, plan.engine.weight_bytes, plan.engine.kv_bytes_per_token) == (2**31, 575_104, 768)
    assert plan.engine.kv_tokens == (2**31 - 2**28 - 575_104) // 768
    assert not plan.fits


@pytest.mark.parametrize(
    ("tensor_parallel", "weight_bytes", "bytes_per_token", "kv_tokens"),
    [
        # weights 2 * 143776; keys and values 2 * 2 bytes * 2 layers * 2 heads * 24 = 384 bytes per token;
        # 2^29 - 287552 - 2^28 = 268147904 free; / 384 = 698301.8
        (1, 287_552, 384, 698_301),
        # weights 287552 / 2, one head left: 192; (2^28 - 143776) / 192 = 1397352.5
        (2, 143_776, 192, 1_397_352),
        # weights 287552 / 4, the one head is copied: 192; (2^28 - 71888) / 192 = 1397726.9
        (4, 71_888, 192, 1_397_726),
    ],
)
def test_engine_share_equals_its_arithmetic(tensor_parallel, weight_bytes, bytes_per_token, kv_tokens):
    engine = make_plan(make_settings(engine_tensor_parallel=tensor_parallel)).engine
    assert engine.share_bytes == 2**29
    assert engine.weight_bytes == weight_bytes
    assert engine.kv_bytes_per_token == bytes_per_token
    assert engine.kv_tokens == kv_tokens


def test_batch_arithmetic_of_the_small_plan():
    batch = make_plan(make_settings()).batch
    assert batch.trajectories_per_iteration == 48  # 6 questions * 8
    assert batch.steps_per_iteration == 3  # 6 / 2
    assert batch.trajectories_per_step == 16  # 2 * 8
    assert batch.trajectories_per_step_per_gpu == 4.0  # 16 / 4
    assert batch.micro_batches_per_step == 2  # 1200 // 500 = 2 rows, 4 trajectories / 2
    assert batch.num_steps == 30  # 3 * 10
    assert batch.num_trajectories == 480  # 48 * 10
    assert batch.max_tokens_per_iteration == 24_000  # 48 * 500
    assert batch.max_response_tokens_per_iteration == 19_200  # 48 * 400


def test_every_pass_over_the_trajectories_has_its_steps():
    batch = make_plan(make_settings(num_epochs=4)).batch
    assert (batch.steps_per_iteration, batch.num_steps) == (12, 120)  # 4 * 3, * 10
    assert batch.num_trajectories == 480


def test_uneven_questions_make_a_smaller_last_step():
    assert make_plan(make_settings(questions_per_iteration=7)).batch.steps_per_iteration == 4


def test_fits_while_the_peak_stays_within_the_gpu():
    assert make_plan(make_settings()).fits
    # 671741856 bytes are 0.6256 GiB without a fraction of the GPU that shrinks along; the engine keeps 2^29 bytes.
    tight = make_plan(make_settings(gpu_memory_gib=0.625, engine_memory_fraction=0.8))
    assert tight.rollout_bytes == 671_741_856
    assert not tight.fits
    assert "The rollout needs 0.6 GiB of the 0.625 GiB" in tight.problems[0]
    assert "largest part is engine" in tight.problems[0]


def test_does_not_fit_if_one_trajectory_exceeds_the_cache():
    plan = make_plan(make_settings(max_response_tokens=800_000))
    assert any("cache holds 698,301 tokens, but one trajectory may have 800,100" in text for text in plan.problems)
    assert not plan.fits


def test_an_engine_share_below_its_weights_holds_no_token():
    assert make_plan(make_settings(engine_workspace_gib=0.5)).engine.kv_tokens == 0


def test_qwen3_14b_fits_on_eight_gpus_but_not_on_two():
    architecture = yaml.safe_load((MODELS / "qwen3_14b.yaml").read_text())["architecture"]
    settings = make_settings(architecture=architecture, gpu_memory_gib=80.0, engine_workspace_gib=2.0, overhead_gib=2.0)
    published = replace(
        settings, group_size=12, max_prompt_tokens=2000, max_response_tokens=6192, engine_memory_fraction=0.6
    )
    assert make_plan(replace(published, num_gpus=8)).fits
    assert not make_plan(replace(published, num_gpus=2)).fits
    # 4 * 14.768e9 bytes of whole fp32 gradients are 55 GiB on every GPU.
    deferred = make_plan(replace(published, num_gpus=8, is_gradient_sync_deferred=True))
    assert not deferred.fits
    assert (deferred.peak_phase, deferred.largest_line.name) == ("update", "gradients")


def test_the_update_of_qwen3_14b_is_what_was_measured_on_fake_tensors():
    architecture = yaml.safe_load((MODELS / "qwen3_14b.yaml").read_text())["architecture"]
    published = make_settings(
        architecture=architecture,
        group_size=12,
        questions_per_iteration=64,
        questions_per_step=8,
        max_prompt_tokens=2000,
        max_response_tokens=6192,
        micro_batch_tokens=16384,
        logprob_chunk_tokens=512,
    )
    # benchmarks/plan.py --full, in GiB without overhead; there a step has two micro-batches, here as many as it needs.
    for ranks, measured in ((1, 238.06), (8, 46.12), (16, 32.36), (64, 22.05)):
        settings = replace(published, num_gpus=ranks, is_gpu=False)
        assert make_plan(settings).update.num_bytes / GIB == pytest.approx(measured, rel=0.01)


def test_lines_that_are_never_used_are_left_out():
    names = set(lines_by_name(engine_memory_fraction=0.0, overhead_gib=0.0))
    assert names.isdisjoint({"engine", "overhead", "reference model"})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["Fits. Peak 0.63 GiB in the rollout; largest part: engine.", "143,776", "698,301 tokens", "GiB"]),
        ({"engine_memory_fraction": 0.0}, ["Fits. Peak 0.13 GiB in the update (last layer); largest part: overhead."]),
        (
            {"gpu_memory_gib": 0.6, "engine_memory_fraction": 0.9},
            ["Does not fit.", "largest part", "It would fit with one of:", "`engine.gpu_memory_utilization=0.75`: 0.6"],
        ),
        ({"gpu_memory_gib": 0.1}, ["Does not fit.", "No single change makes it fit"]),
    ],
    ids=["fits", "no_engine", "too_small", "hopeless"],
)
def test_rendering_names_units_peak_and_verdict(changes, expected):
    console = Console(file=io.StringIO(), width=160)
    console.print(render_plan(make_plan(make_settings(**changes))))
    text = console.file.getvalue()
    assert all(part in text for part in expected)
    assert ("Engine on each GPU" in text) == (changes.get("engine_memory_fraction") != 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_gpus": 0}, "`num_gpus` must be at least 1, but got 0"),
        ({"group_size": -1}, "`group_size` must be at least 1, but got -1"),
        ({"questions_per_step": 7}, "`questions_per_step` must be at most `questions_per_iteration`, but got 7 of 6"),
        ({"engine_tensor_parallel": 3}, "`engine_tensor_parallel` must divide `num_gpus`, but got 3 for 4 GPUs"),
        ({"engine_memory_fraction": 1.2}, r"`engine_memory_fraction` must be in \[0, 1\], but got 1.2"),
        ({"micro_batch_tokens": 0}, "`micro_batch_tokens` must be at least 1, but got 0"),
        ({"max_response_tokens": -3}, "`max_response_tokens` must be at least 1, but got -3"),
        ({"sharding": "none"}, "`sharding` must spread the model over 4 GPUs, but got 'none'"),
        ({"adapter_rank": -1}, "`adapter_rank` must be at least 0, but got -1"),
        ({"gpu_memory_gib": 0.0}, "`gpu_memory_gib` must be positive"),
        ({"overhead_gib": -1.0}, "`overhead_gib` must be at least 0"),
    ],
)
def test_refuses_settings_that_cannot_work(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_settings(**changes)


def test_gib_is_binary():
    assert GIB == 1024**3
