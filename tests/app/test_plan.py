import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

from aepo_lightning.app.memory import GIB, memory_lines, model_size
from aepo_lightning.app.plan import PlanInput, make_plan, render_plan
from aepo_lightning.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf" / "model"

# hidden 64, 2 layers, 4 query heads and 2 key-value heads of 24, MLP 192, vocabulary 256, untied.
SMALL = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "intermediate_size": 192,
    "vocab_size": 256,
    "tie_word_embeddings": False,
}
# One layer: q 64*96 = 6144, k and v 2 * 64*48 = 6144, o 96*64 = 6144, q and k norms 2*24 = 48,
#            MLP 3 * 64*192 = 36864, two norms 128; together 55472.
LAYER = 55_472
# Outside the layers: embedding 256*64 = 16384, head 16384, final norm 64; together 32832.
ROOT = 32_832
# 2 * 55472 + 32832
TOTAL = 143_776
# Saved by one layer per token: norms 2 * (8*64 + 4) = 1032; attention 4*96 + 4*48 + 4*4 = 592;
#                               q and k norms 6 * (96 + 48) + 4 * (4 + 2) = 888; MLP 8*192 = 1536; together 4048.
SAVED = 4_048


def make_settings(**changes):
    settings = PlanInput(
        architecture=SMALL,
        num_gpus=4,
        num_iterations=10,
        questions_per_iteration=6,
        group_size=8,
        questions_per_step=2,
        max_prompt_tokens=100,
        max_response_tokens=400,
        micro_batch_tokens=1200,
        gpu_memory_gib=1.0,
        logprob_chunk_tokens=32,
        engine_memory_fraction=0.5,
        engine_workspace_gib=0.25,
        overhead_gib=0.125,
    )
    return replace(settings, **changes)


def lines_by_name(**changes):
    return {line.name: line for line in make_plan(make_settings(**changes)).lines}


def build_real_model(architecture, **changes):
    fields = {**architecture, **changes}
    config = AutoConfig.for_model(fields.pop("model_type"), use_cache=False, **fields)
    return AutoModelForCausalLM.from_config(config)


def saved_bytes(architecture, num_layers, num_tokens, is_checkpointed):
    """Measure what autograd keeps of one forward pass through the backbone in bf16, parameters excluded."""
    model = build_real_model(architecture, num_hidden_layers=num_layers).to(torch.bfloat16).train()
    if is_checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor keeps its address from being reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.model(input_ids=torch.arange(num_tokens)[None] % 64, use_cache=False).last_hidden_state
    assert output.requires_grad
    return sum(num_bytes for num_bytes, _ in kept.values())


def test_counts_the_parameters_of_the_hand_worked_model():
    size = model_size(SMALL)
    assert (size.num_parameters, size.num_layer_parameters, size.num_root_parameters) == (TOTAL, LAYER, ROOT)
    assert size.num_embedding_parameters == 2 * 256 * 64


def test_counts_the_parameters_of_the_real_model():
    assert model_size(SMALL).num_parameters == sum(p.numel() for p in build_real_model(SMALL).parameters())


def test_tied_weights_count_once():
    size = model_size({**SMALL, "tie_word_embeddings": True})
    assert size.num_parameters == TOTAL - 256 * 64
    assert size.num_embedding_parameters == 256 * 64


@pytest.mark.parametrize(
    ("name", "expected"),
    [("qwen3_14b", 14.77e9), ("qwen3_8b", 8.19e9), ("llama3_8b", 8.03e9), ("qwen2_5_7b", 7.62e9)],
)
def test_configs_describe_the_published_models(name, expected):
    architecture = yaml.safe_load((CONF / f"{name}.yaml").read_text())["architecture"]
    assert model_size(architecture).num_parameters == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("model_type", ["qwen3", "qwen2", "llama"])
def test_saved_bytes_per_layer_are_what_autograd_keeps(model_type):
    architecture = {**SMALL, "model_type": model_type, "head_dim": 24 if model_type == "qwen3" else 16}
    measured = saved_bytes(architecture, 2, 128, False) - saved_bytes(architecture, 1, 128, False)
    assert measured == 128 * model_size(architecture).saved_bytes_per_token


def test_checkpointed_layers_keep_their_input_only():
    measured = saved_bytes(SMALL, 2, 128, True) - saved_bytes(SMALL, 1, 128, True)
    assert measured == 128 * 2 * 64


@pytest.mark.parametrize(
    ("name", "update_bytes", "rollout_bytes"),
    [
        # 4 * 143776 / 4
        ("master weights", 143_776, 143_776),
        # 8 * 143776 / 4
        ("AdamW states", 287_552, 287_552),
        # 0.125 GiB = 2^27
        ("overhead", 134_217_728, 134_217_728),
        # asleep, then half of 1 GiB = 2^29
        ("engine", 0, 536_870_912),
        # 4 * 143776 / 4
        ("gradients", 143_776, 0),
        # 2 * (32832 + 2 * 55472) = 2 * 143776
        ("gathered weights", 287_552, 0),
        # max(2 * 32832 + 6 * 55472, 6 * 32832) = max(398496, 196992)
        ("gradient buffers", 398_496, 0),
        # 1200 tokens * (2 bytes * 64 * 2 layers + 2 * 4048) = 1200 * (256 + 8096) = 1200 * 8352
        ("activations", 10_022_400, 0),
        # 3 buffers * 4 bytes * 32 tokens * 256 + 4 bytes * 64 * 256 = 98304 + 65536
        ("log-prob head", 163_840, 0),
    ],
)
def test_every_line_of_the_small_plan_equals_its_arithmetic(name, update_bytes, rollout_bytes):
    line = lines_by_name()[name]
    assert (line.update_bytes, line.rollout_bytes) == (update_bytes, rollout_bytes)


def test_phases_add_up_and_the_peak_is_the_larger_one():
    plan = make_plan(make_settings())
    # 143776 + 287552 + 134217728 + 143776 + 287552 + 398496 + 10022400 + 163840
    assert plan.update_bytes == 145_665_120
    # 143776 + 287552 + 134217728 + 536870912
    assert plan.rollout_bytes == 671_519_968
    assert (plan.peak_bytes, plan.peak_phase, plan.largest_line.name) == (671_519_968, "rollout", "engine")


def test_the_update_is_the_peak_without_an_engine_on_the_gpu():
    plan = make_plan(make_settings(engine_memory_fraction=0.0))
    assert plan.engine is None
    assert "engine" not in {line.name for line in plan.lines}
    assert (plan.peak_bytes, plan.peak_phase, plan.largest_line.name) == (145_665_120, "update", "overhead")


def test_activations_without_checkpointing_keep_every_layer():
    # 1200 * (2 + 1) * 4048
    assert lines_by_name(is_checkpointed=False)["activations"].update_bytes == 14_572_800


def test_a_trajectory_longer_than_the_token_budget_makes_the_largest_pass():
    # 2000 + 400 tokens * 8352
    assert lines_by_name(max_prompt_tokens=2000)["activations"].update_bytes == 2400 * 8352


def test_a_root_unit_larger_than_the_layers_rules_the_gradient_buffers():
    # vocabulary 4096: root 2 * 4096 * 64 + 64 = 524352; 6 * 524352 against 2 * 524352 + 6 * 55472 = 1381536
    lines = lines_by_name(architecture={**SMALL, "vocab_size": 4096})
    assert lines["gradient buffers"].update_bytes == 3_146_112


def test_deferred_gradient_sync_keeps_whole_gradients():
    # 4 * 143776, not divided by the GPUs
    assert lines_by_name(is_gradient_sync_deferred=True)["gradients"].update_bytes == 575_104


def test_a_reference_model_stays_in_both_phases():
    line = lines_by_name(has_reference=True)["reference model"]
    # 2 * 143776 / 4
    assert (line.update_bytes, line.rollout_bytes) == (71_888, 71_888)


def test_an_engine_that_cannot_sleep_stays_in_the_update():
    line = lines_by_name(engine_sleeps=False)["engine"]
    assert line.update_bytes == line.rollout_bytes == 2**29


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


@pytest.mark.parametrize("name", ["master weights", "AdamW states", "gradients"])
def test_sharded_lines_halve_when_the_gpus_double(name):
    assert lines_by_name(num_gpus=4)[name].update_bytes == 2 * lines_by_name(num_gpus=8)[name].update_bytes


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


def test_uneven_questions_make_a_smaller_last_step():
    assert make_plan(make_settings(questions_per_iteration=7)).batch.steps_per_iteration == 4


def test_fits_while_the_peak_stays_within_the_gpu():
    assert make_plan(make_settings()).fits
    # 671519968 bytes are 0.6254 GiB without a fraction of the GPU that shrinks along; the engine keeps 2^29 bytes.
    tight = make_plan(make_settings(gpu_memory_gib=0.625, engine_memory_fraction=0.8))
    assert tight.rollout_bytes == 671_519_968
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
    architecture = yaml.safe_load((CONF / "qwen3_14b.yaml").read_text())["architecture"]
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


def test_lines_that_are_never_used_are_left_out():
    settings = make_settings(engine_memory_fraction=0.0, overhead_gib=0.0)
    names = {line.name for line in memory_lines(model_size(SMALL), settings)}
    assert names.isdisjoint({"engine", "overhead", "reference model"})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["Fits. Peak 0.63 GiB in the rollout; largest part: engine.", "143,776", "698,301 tokens", "GiB"]),
        ({"engine_memory_fraction": 0.0}, ["Fits. Peak 0.14 GiB in the update; largest part: overhead."]),
        ({"gpu_memory_gib": 0.2}, ["Does not fit.", "largest part"]),
    ],
    ids=["fits", "no_engine", "too_small"],
)
def test_rendering_names_units_peak_and_verdict(changes, expected):
    console = Console(file=io.StringIO(), width=160)
    console.print(render_plan(make_plan(make_settings(**changes))))
    text = console.file.getvalue()
    assert all(part in text for part in expected)
    assert ("Engine on each GPU" in text) == ("engine_memory_fraction" not in changes)


@pytest.mark.parametrize("architecture", [{"model_type": "nonesuch"}, {"hidden_size": 64}], ids=["unknown", "missing"])
def test_refuses_an_unknown_architecture(architecture):
    with pytest.raises(ConfigError, match=r"`architecture\.model_type` must name a Hugging Face architecture"):
        make_plan(make_settings(architecture=architecture))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_gpus": 0}, "`num_gpus` must be at least 1, but got 0"),
        ({"group_size": -1}, "`group_size` must be at least 1, but got -1"),
        ({"questions_per_step": 7}, "`questions_per_step` must be at most `questions_per_iteration`, but got 7 of 6"),
        ({"engine_tensor_parallel": 3}, "`engine_tensor_parallel` must divide `num_gpus`, but got 3 for 4 GPUs"),
        ({"engine_memory_fraction": 1.2}, r"`engine_memory_fraction` must be in \[0, 1\], but got 1.2"),
        ({"gpu_memory_gib": 0.0}, "`gpu_memory_gib` must be positive"),
        ({"overhead_gib": -1.0}, "`overhead_gib` must be at least 0"),
    ],
)
def test_refuses_settings_that_cannot_work(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_settings(**changes)


def test_gib_is_binary():
    assert GIB == 1024**3
