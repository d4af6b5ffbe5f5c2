"""vLLM and the embedded engine, side by side: one seed, one sequence of tokens."""

import itertools

import pytest

from aepo_lightning.app.build import build
from aepo_lightning.engines import TransformersEngine
from tests.support.composed import composed
from tests.support.extras import needs
from tests.support.vllm_parts import BLOCK, CLOSE, generate, make_engine, one, params, prompt, vllm_policy

# vLLM warns about its own imports; its name without the package is what an environment without the extra has.
pytestmark = pytest.mark.filterwarnings("ignore:::vllm", "ignore::DeprecationWarning", "ignore::FutureWarning")
needs("vllm", "vllm")


@pytest.fixture(scope="module", params=["untied", "tied", "quickstart"])
def engines(request):
    """vLLM, and the embedded engine with the same weights."""
    policy = vllm_policy(tie_word_embeddings=request.param == "tied")
    if request.param == "quickstart":
        policy = build(composed().model)
    engine = make_engine(policy)
    yield engine, TransformersEngine(policy, max_num_seqs=8, max_model_len=160), policy.config.vocab_size
    engine.close()


def tokens_of(generations):
    return [generation.token_ids for generation in generations]


# A draw within rounding of a boundary between two tokens may differ; none of these fixed seeds meets one.
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {},
        {"temperature": 0.6, "top_p": 0.95},
        {"temperature": 1.3, "top_k": 5},
        {"top_p": 0.7, "top_k": 20},
        {"temperature": 0.005},
        {"temperature": 0.8, "repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_tokens_are_equal_and_scores_close(engines, settings):
    *both, vocab_size = engines
    requests = [
        ([token % vocab_size for token in prompt(n, n)], params(12, seed=2**61 + n, **settings))
        for n in (1, 6, 17, 40, 70)
    ]
    for ours, theirs in zip(*(generate(engine, requests) for engine in both), strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.finish_reason is theirs.finish_reason
        assert ours.logprobs == pytest.approx(theirs.logprobs, **CLOSE)
        assert ours.entropies == pytest.approx(theirs.entropies, **CLOSE)


@pytest.mark.parametrize("is_vllm", [True, False], ids=["vllm", "transformers"])
def test_a_sequence_that_is_split_into_requests_is_drawn_as_if_it_were_one(engines, is_vllm):
    engine = engines[0 if is_vllm else 1]
    start = [token % engines[2] for token in prompt(7)]
    wholes = ((seed, one(engine, start, params(12, seed=seed)).token_ids) for seed in itertools.count())
    seed, whole = next((seed, tokens) for seed, tokens in wholes if len(tokens) == 12)
    tokens = start
    for length in (3, 1, 8):
        tokens = tokens + one(engine, tokens, params(length, seed=seed)).token_ids
    assert tokens[7:] == whole


def test_prompts_that_are_read_in_chunks_change_nothing():
    policy = vllm_policy()
    engine = make_engine(policy, max_num_batched_tokens=BLOCK)
    requests = [(prompt(3 * BLOCK + n, n), params(8, seed=n, top_p=0.9)) for n in range(5)]
    embedded = TransformersEngine(policy, max_num_seqs=8, max_model_len=160)
    assert tokens_of(generate(engine, requests)) == tokens_of(generate(embedded, requests))
    engine.close()
