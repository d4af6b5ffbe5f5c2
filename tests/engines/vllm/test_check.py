"""Entropies that cannot be trusted: the check at the start, and the truncated estimate in their place."""

import asyncio

import pytest
import torch

from aepo_lightning.contracts.generation import FinishReason
from aepo_lightning.engines.vllm import sampler as vllm_sampler
from aepo_lightning.engines.vllm.entropy import pack_entropies, top_k_entropy_gap
from aepo_lightning.errors import EngineError
from aepo_lightning.ops.entropy import top_k_entropy
from tests.support.extras import needs
from tests.support.slow import first_quick
from tests.support.vllm_parts import (
    BLOCK,
    CLOSE,
    PROMPT,
    assert_exact,
    generate,
    make_engine,
    one,
    params,
    prompt,
    vllm_policy,
)

# vLLM warns about its own imports; its name without the package is what an environment without the extra has.
pytestmark = pytest.mark.filterwarnings("ignore:::vllm", "ignore::DeprecationWarning", "ignore::FutureWarning")
needs("vllm", "vllm")


@pytest.fixture(scope="module")
def fallen():
    """An engine that was told not to trust its entropies."""
    engine = make_engine(max_num_batched_tokens=160)
    engine.fall_back_to_top_k("Said by the test.")
    yield engine
    engine.close()


def top_20(model, tokens, generation, temperature):
    logits = model(input_ids=torch.tensor([[*tokens, *generation.token_ids]])).logits[0, len(tokens) - 1 : -1]
    return (logits.double() / temperature).log_softmax(-1).topk(20).values.tolist()


def test_an_engine_is_exact_until_it_is_told_otherwise(plain, caplog):
    one(plain)
    assert plain.entropy_source == "exact"
    assert not caplog.records
    # Its own check, with draws by vLLM, left nothing of that behind.
    scheduler = plain._core._llm.llm_engine.engine_core.engine_core.scheduler
    assert scheduler.scheduler_config.enable_chunked_prefill
    assert plain._core.num_unfinished() == 0


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_after_the_fall_back_entropies_are_truncated_within_their_bound_and_logprobs_stay_exact(fallen, temperature):
    model = vllm_policy().build_model()
    requests = [(prompt(n, n), params(8, seed=n, temperature=temperature)) for n in (3, 9, 40)]
    for (tokens, _), generation in zip(requests, generate(fallen, requests), strict=True):
        truncated = generation.entropies
        exact = exact_entropies(model, tokens, generation, temperature)
        tops = top_20(model, tokens, generation, temperature)
        for reported, entropy, top, logprob in zip(truncated, exact, tops, generation.logprobs, strict=True):
            is_extra = logprob < top[-1] - 1e-4  # the sampled token is listed in any case
            # Sums over the same float32 log-probs, as computed by two implementations.
            assert reported == pytest.approx(top_k_entropy([*top, *[logprob] * is_extra]), abs=1e-4)
            low, high = top_k_entropy_gap([*top, *[logprob] * is_extra], 268)
            assert low - 1e-4 <= entropy - reported <= high + 1e-4
    assert fallen.entropy_source == "top_20"


def exact_entropies(model, tokens, generation, temperature):
    logits = model(input_ids=torch.tensor([[*tokens, *generation.token_ids]])).logits[0, len(tokens) - 1 : -1]
    logprobs = (logits.double() / temperature).log_softmax(-1)
    sampled = logprobs[range(len(logprobs)), generation.token_ids].tolist()
    assert generation.logprobs == pytest.approx(sampled, **CLOSE)
    return [top_k_entropy(row) for row in logprobs.tolist()]


def test_after_the_fall_back_seeds_repeat_in_any_batch_and_greedy_stays_greedy(fallen):
    requests = [(prompt(3 * BLOCK + n, n), params(6, seed=n, temperature=float(n % 3))) for n in range(6)]
    alone = [one(fallen, *request).token_ids for request in requests]
    assert [generation.token_ids for generation in generate(fallen, requests)] == alone
    embedded_greedy = [one(fallen, prompt(9), params(6, seed=seed, temperature=0.0)).token_ids for seed in (1, 2)]
    assert embedded_greedy[0] == embedded_greedy[1]


@pytest.mark.parametrize("num_top", [3, 30])
def test_after_the_fall_back_top_logprobs_are_those_asked_for(fallen, num_top):
    generation = one(fallen, PROMPT, params(5, num_top_logprobs=num_top))
    assert all(len(listed) in (num_top, num_top + 1) for listed in generation.top_logprobs)
    assert one(fallen, PROMPT, params(5)).top_logprobs == []


def test_falling_back_is_announced_once_with_reason_and_bound(caplog):
    engine = make_engine()
    engine.fall_back_to_top_k("The first reason.")
    engine.fall_back_to_top_k("The second reason.")
    (record,) = caplog.records
    assert "must be exact within 0.001 nats, but are not. The first reason." in record.getMessage()
    engine.close()


def test_a_running_engine_falls_back_between_requests_only(plain):
    async def run():
        task = asyncio.create_task(plain.generate(PROMPT, params(5)))
        while not plain._requests:
            await asyncio.sleep(0)
        with pytest.raises(EngineError, match="Entropies must not change while requests run"):
            plain.fall_back_to_top_k("Too early.")
        return await task

    assert asyncio.run(run()).finish_reason is FinishReason.LENGTH
    assert plain.entropy_source == "exact"


def test_an_exact_engine_can_fall_back_after_it_has_run():
    engine = make_engine()
    before = one(engine)
    engine.fall_back_to_top_k("The trainer disagrees.")
    after = one(engine, [*PROMPT, *before.token_ids], params(8))
    assert engine.entropy_source == "top_20"
    assert len(after.entropies) == 8
    exact_entropies(vllm_policy().build_model(), [*PROMPT, *before.token_ids], after, 1.0)
    engine.close()


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        (lambda entropies: pack_entropies(entropies + 0.002), "The entropy reported for a token is"),
        (
            lambda entropies: torch.ones(len(entropies), dtype=torch.long),
            "must report entropies, but reported the rank 1",
        ),
    ],
    ids=["biased", "not_packed"],
)
def test_a_report_that_vllms_own_distribution_contradicts_is_not_used(monkeypatch, caplog, broken, match):
    monkeypatch.setattr(vllm_sampler, "pack_entropies", broken)
    engine = make_engine()
    generation = one(engine)
    assert engine.entropy_source == "top_20"
    assert match in caplog.text
    exact_entropies(vllm_policy().build_model(), PROMPT, generation, 1.0)
    engine.close()


def test_a_sampler_of_an_unknown_class_is_left_alone(monkeypatch, caplog):
    from vllm.v1.worker import gpu_model_runner

    class Watermark(gpu_model_runner.Sampler):
        pass

    monkeypatch.setattr(gpu_model_runner, "Sampler", Watermark)
    engine = make_engine()
    generation = one(engine)
    assert engine.entropy_source == "top_20"
    assert "Watermark" in caplog.text
    exact_entropies(vllm_policy().build_model(), PROMPT, generation, 1.0)
    engine.close()


@pytest.mark.parametrize("max_model_len", first_quick([2, 3, 6]))
def test_the_check_fits_into_the_shortest_context(max_model_len):
    engine = make_engine(max_model_len=max_model_len)
    generation = one(engine, [5], params(9))
    assert len(generation.token_ids) <= max_model_len - 1
    assert engine.entropy_source == "exact"
    assert_exact(vllm_policy().build_model(), [5], generation)
    engine.close()


def test_the_check_compares_the_same_logits_whatever_their_precision(caplog):
    engine = make_engine(dtype="bfloat16")
    one(engine)
    assert engine.entropy_source == "exact", caplog.text
    engine.close()
