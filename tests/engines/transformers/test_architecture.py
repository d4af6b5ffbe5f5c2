"""Models that the embedded engine would compute wrongly are refused."""

import pytest

from aepo_lightning.engines import TransformersEngine
from aepo_lightning.engines.transformers.architecture import check_architecture, check_cache
from aepo_lightning.errors import EngineError
from aepo_lightning.ops.logit_map import LogitMap
from tests.support.builders import tiny_policy


def check(max_model_len=128, **fields):
    check_architecture(tiny_policy(**fields).build_model(), max_model_len)


@pytest.mark.parametrize("model_type", ["qwen3", "qwen2", "llama", "mistral"])
def test_full_attention_models_pass(model_type):
    check(model_type=model_type)


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "mistral", "sliding_window": 64},
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
    ],
    ids=["every_layer", "some_layers"],
)
def test_a_context_beyond_the_attention_window_is_refused(fields):
    check(max_model_len=64, **fields)
    with pytest.raises(EngineError, match=r"`max_model_len` must be at most the attention window of 64 tokens"):
        check(max_model_len=65, **fields)


def test_an_attention_that_reads_masks_differently_is_refused():
    with pytest.raises(EngineError, match=r"`attn_implementation` must be 'sdpa' in this engine, but got 'eager'"):
        check(attn_implementation="eager")


def test_a_cap_of_attention_scores_is_refused():
    with pytest.raises(EngineError, match=r"`attn_logit_softcapping` must be None, but got 50.0 \(Gemma2ForCausalLM\)"):
        check(model_type="gemma2", head_dim=8)


def test_a_scaled_head_passes_and_is_measured():
    policy = tiny_policy(model_type="granite", logits_scaling=8.0)
    assert check_architecture(policy.build_model(), 128) == LogitMap(scale=0.125)


def test_a_model_without_the_usual_parts_is_refused():
    with pytest.raises(EngineError, match=r"must have a `model` backbone and an `lm_head`, but got GPT2LMHeadModel"):
        check(model_type="gpt2", n_embd=32, n_layer=1, n_head=2)


UNFIT = {
    "a state beside the slots": (
        {"model_type": "recurrent_gemma", "head_dim": 8, "lru_width": 32, "num_hidden_layers": 3},
        r"those of RecurrentGemmaForCausalLM differ by 0\.\d+ of their norm, where rounding may make 0\.0001",
    ),
    "heads that the configuration does not tell": (
        {"model_type": "persimmon"},
        "must serve the model, but PersimmonForCausalLM fails on them: RuntimeError",
    ),
}


@pytest.mark.parametrize(("fields", "message"), UNFIT.values(), ids=UNFIT)
def test_layers_that_slots_do_not_serve_are_refused_before_the_first_request(fields, message):
    with pytest.raises(EngineError, match=message):
        TransformersEngine(tiny_policy(**fields), max_model_len=64)


def test_layers_that_slots_serve_pass():
    check_cache(tiny_policy(model_type="gemma3_text", head_dim=8).build_model().eval())
