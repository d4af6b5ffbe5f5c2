"""What the plan says of the engine in the trainer's process, against the engine at work."""

from functools import cache

import pytest
from omegaconf import OmegaConf

from aepo_lightning.app.plan import make_plan, print_plan
from aepo_lightning.app.plan.from_config import plan_input
from aepo_lightning.app.plan.model_size import GIB
from aepo_lightning.errors import ConfigError
from benchmarks.plan import ENGINES, SMALL, planned_engine
from benchmarks.support.measured_engine import EngineLoad, measure_engine
from tests.support.composed import composed

# SmolLM2: 134515008 parameters; 2 * 30 layers * 3 heads * 64 = 11520 numbers of keys and values a token.
WEIGHTS, TOKEN = 134_515_008, 11_520


@cache
def smollm2(engine):
    return composed("model=smollm2", f"engine={engine}")


def engine(kind="transformers", **changes):
    cfg = smollm2(kind).copy()
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    return make_plan(plan_input(cfg)).engine


def test_the_embedded_engine_needs_what_is_planned():
    load = EngineLoad(architecture=SMALL, max_num_seqs=4, max_model_len=48, max_prefill_tokens=192)
    assert planned_engine(load) == pytest.approx(measure_engine(load), rel=0.02)


def test_top_p_and_top_k_sort_every_logit():
    short = {"engine__max_model_len": 16, "engine__max_prefill_tokens": 16, "rollout__sampling__max_response_tokens": 1}
    plain, narrow, few = (
        engine(engine__max_num_seqs=64, rollout__sampling__top_p=top_p, rollout__sampling__top_k=top_k, **short)
        for top_p, top_k in ((1.0, 0), (0.9, 0), (1.0, 20))
    )
    assert narrow.share_bytes == few.share_bytes == plain.share_bytes + 64 * 49_152 * 45
    assert narrow.asleep_bytes == few.asleep_bytes == plain.asleep_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_a_large_vocabulary_needs_what_is_planned(name):
    assert planned_engine(ENGINES[name]) == pytest.approx(measure_engine(ENGINES[name]), rel=0.02)


def test_the_cache_of_the_embedded_engine_is_bounded():
    found = engine(engine__max_cache_gib=1.0)
    # 1025 tokens of 46080 bytes in each slot.
    assert found.kv_bytes_per_token == 4 * TOKEN
    assert found.kv_tokens == GIB // (1025 * 4 * TOKEN) * 1025
    assert found.asleep_bytes == 4 * WEIGHTS + found.kv_tokens * 4 * TOKEN
    assert found.share_bytes > found.asleep_bytes
    assert engine().kv_tokens == 2 * GIB // (1025 * 4 * TOKEN) * 1025
    assert engine(engine__max_cache_gib=1000.0).kv_tokens == 1024 * 1025


ON_GPU = {"trainer__accelerator": "gpu", "engine__max_num_seqs": 64, "engine__max_cache_gib": 1000.0}


@pytest.mark.parametrize(
    ("changes", "number_bytes", "length"),
    [
        ({}, 4, 1025),
        (ON_GPU, 2, 1088),
        (ON_GPU | {"engine__cuda_graphs": False}, 2, 1025),
        (ON_GPU | {"engine__dtype": "float32"}, 4, 1088),
        (ON_GPU | {"engine__device": "cpu"}, 4, 1025),
        ({"model__dtype": "bfloat16"}, 2, 1025),
        ({"engine__dtype": "bfloat16"}, 2, 1025),
    ],
    ids=str,
)
def test_the_embedded_engine_holds_weights_and_cache_in_its_precision(changes, number_bytes, length):
    found = engine(**{"engine__max_num_seqs": 16} | changes)
    assert (found.weight_bytes, found.kv_bytes_per_token) == (number_bytes * WEIGHTS, number_bytes * TOKEN)
    assert found.kv_tokens == 2 * changes.get("engine__max_num_seqs", 16) * length


def test_a_bound_below_one_sequence_is_refused_before_anything_is_built():
    with pytest.raises(ConfigError, match="`max_cache_gib` must hold at least one sequence of 1025 tokens"):
        engine(engine__max_cache_gib=0.04)


@pytest.mark.parametrize("given", [None, 1_000_000], ids=["default", "given"])
def test_vllm_on_a_cpu_has_a_cache_of_a_set_size_and_never_sleeps(given):
    found = engine("vllm", engine__kv_cache_memory_bytes=given)
    kept = given or 2**29
    assert found.share_bytes == 2 * WEIGHTS + kept + 2 * GIB
    assert found.asleep_bytes == 2 * WEIGHTS + kept
    assert found.kv_tokens == kept // (2 * TOKEN)


def test_vllm_on_a_gpu_has_a_share_of_it_or_a_cache_of_a_set_size():
    gpu = {"trainer__accelerator": "gpu", "engine__dtype": "float32"}
    assert engine("vllm", **gpu).share_bytes == round(0.6 * 80 * GIB)
    found = engine("vllm", **gpu, engine__kv_cache_memory_bytes=1_000_000)
    assert (found.share_bytes, found.asleep_bytes) == (4 * WEIGHTS + 1_000_000 + 2 * GIB, 0)


def test_the_plan_says_in_which_precision_weights_are(capsys):
    print_plan(smollm2("transformers"))
    print_plan(smollm2("vllm"))
    text = capsys.readouterr().out
    assert "weights (fp32)" in text
    assert "weights (bf16)" in text
