"""vLLM in process: the numbers of a plain forward pass, sampling, new weights."""

import asyncio
import math

import pytest
import torch

from aepo_lightning.contracts.engine import Engine
from aepo_lightning.errors import EngineError
from tests.support.extras import needs
from tests.support.vllm_parts import (
    BLOCK,
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


def test_the_engine_satisfies_its_protocol(engine):
    assert isinstance(engine, Engine)
    assert (engine.max_model_len, engine.dtype) == (160, "float32")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("restriction", [{}, {"top_p": 0.6}, {"top_k": 3}], ids=str)
def test_scores_are_those_of_a_plain_forward_pass_before_top_p_and_top_k(pair, temperature, restriction):
    engine, policy = pair
    requests = [(prompt(n, n), params(8, seed=n, temperature=temperature, **restriction)) for n in (1, 9, 33, 50)]
    model = policy.build_model()
    for (tokens, _), generation in zip(requests, generate(engine, requests), strict=True):
        assert_exact(model, tokens, generation, temperature)


def test_requests_of_several_temperatures_share_a_batch_and_keep_their_own_scores(pair):
    engine, policy = pair
    temperatures = (0.0, 1.0, 0.3, 2.0)
    requests = [(prompt(9, n), params(5, seed=n, temperature=t)) for n, t in enumerate(temperatures)]
    model = policy.build_model()
    for (tokens, each), generation in zip(requests, generate(engine, requests), strict=True):
        assert_exact(model, tokens, generation, each.temperature or 1.0)


def test_sampled_tokens_follow_the_distribution(plain):
    generations = generate(plain, [(PROMPT, params(1, seed=seed)) for seed in range(800)])
    surprise = torch.tensor([-generation.logprobs[0] for generation in generations], dtype=torch.float64)
    # The mean of -log p over samples of p is the entropy; four standard errors, with fixed seeds.
    assert surprise.mean().item() == pytest.approx(
        generations[0].entropies[0], abs=4 * surprise.std().item() / math.sqrt(len(surprise))
    )
    assert len({generation.token_ids[0] for generation in generations}) > 20


@pytest.mark.parametrize("num_top", [1, 5, 10_000])
def test_top_logprobs_are_the_largest_and_include_the_sampled_token(plain, num_top):
    requests = [(prompt(4), params(8, num_top_logprobs=num_top)), (prompt(6), params(8))]
    asked, other = generate(plain, requests)
    assert other.top_logprobs == []
    assert_exact(vllm_policy().build_model(), prompt(4), asked)  # entropies survive a sampled token among the top
    for sampled, listed in zip(asked.logprobs, asked.top_logprobs, strict=True):
        assert sampled in listed
        assert listed[:num_top] == sorted(listed[:num_top], reverse=True)
        assert len(listed) <= min(num_top + 1, 268)
        if num_top > 268:
            assert math.fsum(map(math.exp, listed)) == pytest.approx(1, abs=1e-5)  # 268 numbers in float32


def test_tokens_do_not_depend_on_what_else_is_in_the_batch(plain):
    requests = [(prompt(3 + n, n), params(8, seed=n, top_p=0.9 if n % 2 else 1.0)) for n in range(7)]
    alone = [one(plain, *request).token_ids for request in requests]
    assert [generation.token_ids for generation in generate(plain, requests)] == alone


def test_a_seed_of_63_bits_repeats_and_its_neighbours_differ(plain):
    seeds = (2**63 - 1, 2**63 - 1, 2**63 - 2, 2**62 - 1, 2**31 - 1)
    first, again, *others = (g.token_ids for g in generate(plain, [(PROMPT, params(8, seed=s)) for s in seeds]))
    assert first == again
    assert len({tuple(tokens) for tokens in (first, *others)}) == 4


def test_new_weights_are_seen_and_old_prefixes_forgotten(pair):
    engine, policy = pair
    tokens = prompt(3 * BLOCK + 5)
    first = one(engine, tokens)
    assert one(engine, tokens).num_cached_tokens == 3 * BLOCK
    for seed in (1, 2, 0):
        other = vllm_policy(seed=seed, tie_word_embeddings=policy.config.tie_word_embeddings).build_model()
        engine.load_weights(other.named_parameters(), seed)
        after = one(engine, tokens)
        assert engine.weights_version == seed
        assert after.num_cached_tokens == 0
        assert_exact(other, tokens, after)
    assert after.token_ids == first.token_ids  # the first weights again


def test_a_tied_weight_may_come_under_either_name_or_both():
    policy = vllm_policy(seed=1, tie_word_embeddings=True)
    model = policy.build_model()
    engine = make_engine(policy)
    names = {"model.embed_tokens.weight": "lm_head.weight"}
    weights = list(model.named_parameters())
    for published in ([(names.get(name, name), tensor) for name, tensor in weights], list(model.state_dict().items())):
        engine.load_weights(published, 1)
        assert_exact(model, PROMPT, one(engine))
    engine.close()


def wrong_weights(kind):
    weights = dict(vllm_policy().build_model().named_parameters())
    name = "model.layers.1.self_attn.v_proj.weight"
    if kind == "unknown":
        weights["model.layers.9.mlp.up_proj.weight"] = weights[name]
    elif kind == "missing":
        del weights[name]
    else:
        weights[name] = weights[name][:, :1]
    return weights.items()


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("unknown", r"has no weight named 'model\.layers\.9\.mlp\.up_proj\.weight'"),
        ("missing", r"1 are missing, 'model\.layers\.1\.self_attn\.v_proj\.weight' among them"),
        (
            "shape",
            r"Weight 'model\.layers\.1\.self_attn\.v_proj\.weight' must have shape \(64, 32\), but got \(64, 1\)",
        ),
    ],
)
def test_wrong_weights_are_refused_and_right_ones_repair_the_engine(plain, kind, match):
    expected = one(plain)
    with pytest.raises(EngineError, match=match):
        plain.load_weights(wrong_weights(kind), 1)
    with pytest.raises(EngineError, match=r"The last publication of weights failed\. Publish weights first"):
        one(plain)
    plain.load_weights(vllm_policy().build_model().named_parameters(), 2)
    assert one(plain) == expected


def test_weights_must_not_change_and_the_engine_must_not_sleep_while_requests_run(plain):
    async def run():
        task = asyncio.create_task(plain.generate(PROMPT, params(20)))
        while not plain._requests:
            await asyncio.sleep(0)
        with pytest.raises(EngineError, match="Weights must not change while requests run"):
            plain.load_weights([], 1)
        with pytest.raises(EngineError, match="must not sleep while requests run"):
            plain.sleep()
        with pytest.raises(EngineError, match="The rollout is not over while requests run"):
            plain.settle()
        return await task

    assert len(asyncio.run(run()).token_ids) == 20


def test_sleeping_changes_nothing_on_the_cpu(plain):
    before = one(plain)
    plain.sleep()
    assert one(plain).token_ids == before.token_ids
