"""The embedded engine's numbers: equal to a plain forward pass, whatever is cached, batched or evicted."""

import asyncio
import math

import pytest
import torch

from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.generation import FinishReason, SamplingParams
from aepo_lightning.engines import TransformersEngine
from tests.support.builders import reference_scores, tiny_policy, with_head_bias
from tests.support.static_engine import static_engine

# Two float32 computations of the same sums in another order; the requirement is 1e-4.
CLOSE = {"abs": 5e-6, "rel": 5e-6}

MODELS = {
    "qwen3": {"model_type": "qwen3"},
    "qwen3_tied": {"model_type": "qwen3", "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2"},
    "llama_tied": {"model_type": "llama", "tie_word_embeddings": True},
    "granite": {"model_type": "granite", "logits_scaling": 13.0},
    "cohere": {"model_type": "cohere", "logit_scale": 0.3},
    "phi": {"model_type": "phi"},
    "gemma3_capped": {"model_type": "gemma3_text", "head_dim": 8, "final_logit_softcapping": 2.0},
}


def make_engine(policy=None, **settings):
    return TransformersEngine(policy or tiny_policy(), **({"max_num_seqs": 8, "max_model_len": 64} | settings))


def params(max_tokens=6, **fields):
    return SamplingParams(max_tokens=max_tokens, **fields)


def generate(engine, requests):
    """Run all (prompt, params) at once and return the generations in order."""

    async def run():
        return await asyncio.gather(*(engine.generate(prompt, each) for prompt, each in requests))

    return asyncio.run(run())


def assert_exact(policy, prompt, generation, temperature=1.0):
    model = policy.build_model()
    tokens = [*prompt, *generation.token_ids]
    logprobs, entropies = reference_scores(model, tokens, len(prompt), temperature)
    assert generation.logprobs == pytest.approx(logprobs, **CLOSE)
    assert generation.entropies == pytest.approx(entropies, **CLOSE)


def prompt(length, salt=0):
    return [2 + (7 * position + 13 * salt) % 250 for position in range(length)]


def test_the_engine_satisfies_its_protocol():
    assert isinstance(make_engine(), Engine)


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_and_entropies_equal_a_plain_forward_pass_for_prompts_of_mixed_lengths(fields, temperature):
    policy = with_head_bias(tiny_policy(**fields))
    requests = [(prompt(n, n), params(seed=n, temperature=temperature)) for n in (1, 2, 9, 8, 17, 30)]
    for (tokens, _), generation in zip(requests, generate(make_engine(policy), requests), strict=True):
        assert len(generation.token_ids) == 6 or generation.finish_reason is FinishReason.EOS
        assert generation.num_cached_tokens == 0
        assert_exact(policy, tokens, generation, temperature)


def test_the_distributions_of_the_tiny_policy_are_uneven_enough_to_tell_errors():
    generation = generate(make_engine(), [(prompt(9), params(20))])[0]
    assert max(generation.entropies) - min(generation.entropies) > 0.1
    assert max(generation.entropies) < math.log(268) - 0.1


@pytest.mark.parametrize("result_length", [1, 2, 5, 20])
def test_continuing_a_chain_reuses_all_but_the_last_token_and_stays_exact(result_length):
    policy = tiny_policy()
    engine = make_engine(policy, block_size=4)
    tokens, known = prompt(10), 0
    for turn in range(3):
        generation = generate(engine, [(tokens, params(4, seed=turn))])[0]
        assert generation.num_cached_tokens == known
        assert_exact(policy, tokens, generation)
        tokens = [*tokens, *generation.token_ids]
        known = len(tokens) - 1  # the last sampled token was never fed
        tokens = [*tokens, *prompt(result_length, turn)][:55]


def test_branches_from_the_middle_share_the_prefix_and_leave_the_trunk_exact():
    policy = tiny_policy()
    engine = make_engine(policy, block_size=4)
    trunk = prompt(20)
    first = generate(engine, [(trunk, params(10, seed=1))])[0]
    middle = [*trunk, *first.token_ids[:5]]
    requests = [(middle, params(8, seed=seed)) for seed in range(2, 6)]
    requests.append(([*trunk, *first.token_ids, 7], params(5, seed=9)))
    for (tokens, _), generation in zip(requests, generate(engine, requests), strict=True):
        assert generation.num_cached_tokens >= 24
        assert_exact(policy, tokens, generation)


@pytest.mark.parametrize(("num_seqs", "num_slots"), [(1, 1), (2, 2), (2, 3), (3, 9)])
def test_many_more_requests_than_slots_stay_exact(num_seqs, num_slots):
    policy = tiny_policy()
    engine = make_engine(policy, max_num_seqs=num_seqs, num_slots=num_slots, block_size=2)
    shared = prompt(6)
    first = [(shared + prompt(n % 4, n), params(1 + n % 5, seed=n)) for n in range(12)]
    results = generate(engine, first)
    second = [([*tokens, *r.token_ids, 5], params(3, seed=1)) for (tokens, _), r in zip(first, results, strict=True)]
    for (tokens, _), generation in zip(first + second, results + generate(engine, second), strict=True):
        assert_exact(policy, tokens, generation)
    assert engine.counters.num_cached_tokens > 0


@pytest.mark.parametrize("max_prefill_tokens", [1, 40, 10_000])
def test_tokens_do_not_depend_on_what_else_is_in_the_batch(max_prefill_tokens):
    requests = [(prompt(3 + n, n), params(8, seed=n, top_p=0.9 if n % 2 else 1.0)) for n in range(7)]
    alone = [generate(make_engine(), [request])[0].token_ids for request in requests]
    together = generate(make_engine(max_prefill_tokens=max_prefill_tokens), requests)
    assert [generation.token_ids for generation in together] == alone


def test_a_sequence_split_into_requests_draws_the_same_random_numbers():
    whole = generate(make_engine(), [(prompt(5), params(8, seed=3))])[0].token_ids
    engine = make_engine()
    tokens = prompt(5)
    for _ in range(8):
        tokens += generate(engine, [(tokens, params(1, seed=3))])[0].token_ids
    assert tokens == prompt(5) + whole


def test_one_seed_repeats_and_another_differs():
    requests = [(prompt(5), params(8, seed=seed)) for seed in (1, 1, 2)]
    first, again, other = (generation.token_ids for generation in generate(make_engine(), requests))
    assert first == again != other


def test_greedy_takes_the_most_likely_token_of_a_plain_forward_pass():
    policy = tiny_policy()
    generation = generate(make_engine(policy), [(prompt(5), params(6, temperature=0.0))])[0]
    model = policy.build_model()
    for index, token in enumerate(generation.token_ids):
        tokens = prompt(5) + generation.token_ids[:index]
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        assert token == int(logits.argmax())
    assert_exact(policy, prompt(5), generation)


@pytest.mark.parametrize("is_captured", [False, True])
def test_a_repetition_penalty_is_that_of_its_request_and_changes_draws_alone(is_captured, monkeypatch):
    policy, penalty = tiny_policy(), 1.7
    engine = static_engine(monkeypatch, policy) if is_captured else make_engine(policy)
    plain, greedy = params(9, temperature=0.0), params(9, temperature=0.0, repetition_penalty=penalty)
    (free, lowered, other) = generate(engine, [(prompt(5), plain), (prompt(5), greedy), (prompt(9), plain)])
    model = policy.build_model()
    for index, token in enumerate(lowered.token_ids):
        tokens = prompt(5) + lowered.token_ids[:index]
        scores = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].tolist()
        for seen in set(tokens):
            scores[seen] = scores[seen] / penalty if scores[seen] > 0 else scores[seen] * penalty
        assert token == scores.index(max(scores))
    assert lowered.token_ids != free.token_ids
    assert_exact(policy, prompt(5), lowered)
    assert [free.token_ids, other.token_ids] == [
        each.token_ids for each in generate(make_engine(policy), [(prompt(5), plain), (prompt(9), plain)])
    ]


@pytest.mark.parametrize("num_top", [1, 5, 10_000])
def test_top_logprobs_are_the_largest_and_include_the_sampled_token(num_top):
    requests = [(prompt(4), params(5, num_top_logprobs=num_top)), (prompt(6), params(5))]
    asked, other = generate(make_engine(), requests)
    assert other.top_logprobs == []
    for sampled, listed in zip(asked.logprobs, asked.top_logprobs, strict=True):
        assert sampled in listed
        assert listed[:num_top] == sorted(listed[:num_top], reverse=True)
        assert len(listed) <= min(num_top + 1, 268)
        if num_top > 268:
            assert math.fsum(map(math.exp, listed)) == pytest.approx(1, abs=1e-5)  # 268 numbers in float32


def test_counters_count_tokens_and_passes():
    engine = make_engine()
    generate(engine, [(prompt(4), params(3)), (prompt(6, 1), params(3))])
    # One pass over both prompts, then two for the other tokens of both.
    assert engine.counters.num_forward_passes == 3
    assert engine.counters.num_generated_tokens == 6
    assert engine.counters.num_prompt_tokens == 10
    assert engine.counters.num_cached_tokens == 0


@pytest.mark.parametrize(
    "settings",
    [{"max_num_seqs": 0}, {"max_model_len": 1}, {"max_num_seqs": 4, "num_slots": 3}],
    ids=str,
)
def test_sizes_without_meaning_are_refused(settings):
    with pytest.raises(ValueError, match="`max_num_seqs` must be at least 1, `max_model_len` at least 2 and"):
        make_engine(**settings)
