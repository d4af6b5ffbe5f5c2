"""vLLM in process: the numbers of a plain forward pass, new weights, ends, probes, cancellation, a whole rollout."""

import asyncio
import math

import numpy as np
import pytest
import torch

from aepo_lightning.branching import EntropyBalanced
from aepo_lightning.budgets import FixedBudget
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.engines.vllm_engine import VLLMEngine
from aepo_lightning.entropy import TurnEntropy
from aepo_lightning.errors import EngineError
from aepo_lightning.protocols import Engine
from aepo_lightning.rewards import PaperReward
from aepo_lightning.rollout import RolloutParts, RolloutSampler, RolloutSettings, TagProtocol
from aepo_lightning.tasks import TrailTask
from aepo_lightning.tasks.trail import vocabulary
from aepo_lightning.tokenizers import build_word_tokenizer
from aepo_lightning.tools import CorpusSearch, ToolRuntime
from aepo_lightning.types import FinishReason, SamplingParams
from tests.builders import reference_scores, tiny_policy

# vLLM warns about its own imports; its name without the package is what an environment without the extra has.
pytestmark = pytest.mark.filterwarnings("ignore:::vllm", "ignore::DeprecationWarning", "ignore::FutureWarning")
pytest.importorskip("vllm", reason="needs the `vllm` extra", exc_type=ImportError)

# Two float32 computations of the same sums in another order, one of them with vLLM's kernels.
CLOSE = {"abs": 1e-4}
PROMPT = [5, 9, 30, 8, 70, 61]
BLOCK = 32
"""Tokens of one block of the prefix cache: the smallest on the CPU."""


def vllm_policy(tokenizer=None, seed=0, **fields):
    """A tiny policy whose heads are as small as vLLM's CPU kernels take them."""
    policy = tiny_policy(tokenizer=tokenizer, head_dim=32, **fields)
    policy.seed = seed
    return policy


def make_engine(policy=None, **settings):
    defaults = {"max_model_len": 160, "max_num_seqs": 16, "dtype": "float32", "kv_cache_memory_bytes": 16 << 20}
    return VLLMEngine(policy or vllm_policy(), **(defaults | settings))


def params(max_tokens=6, **fields):
    return SamplingParams(max_tokens=max_tokens, **fields)


def generate(engine, requests):
    async def run():
        return await asyncio.gather(*(engine.generate(tokens, each) for tokens, each in requests))

    return asyncio.run(run())


def one(engine, tokens=PROMPT, each=None, on_probe=None):
    return asyncio.run(engine.generate(list(tokens), each or params(), on_probe))


def prompt(length, salt=0):
    return [2 + (7 * position + 13 * salt) % 250 for position in range(length)]


def assert_exact(model, tokens, generation, temperature=1.0):
    logprobs, entropies = reference_scores(model, [*tokens, *generation.token_ids], len(tokens), temperature)
    assert generation.logprobs == pytest.approx(logprobs, **CLOSE)
    assert generation.entropies == pytest.approx(entropies, **CLOSE)


class Biased:
    """A tiny policy that always writes a given cycle of tokens: each token's successor has by far the largest logit."""

    def __init__(self, text):
        self._policy = vllm_policy()
        self.tokenizer, self.config = self._policy.tokenizer, self._policy.config
        self.ids = self.tokenizer.encode(text, add_special_tokens=False)

    def build_model(self):
        model = self._policy.build_model()
        # Without attention and MLP the hidden state is the normed embedding: one-hot pairs make a lookup table.
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            model.model.embed_tokens.weight.zero_()
            model.lm_head.weight.zero_()
            for index, token in enumerate(self.ids):
                model.model.embed_tokens.weight[token, index] = 1.0
                model.lm_head.weight[self.ids[(index + 1) % len(self.ids)], index] = 100.0
        return model


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def pair(request):
    """An engine with its first weights, and the policy that they come from."""
    policy = vllm_policy(tie_word_embeddings=request.param)
    engine = make_engine(policy)
    yield engine, policy
    engine.close()


@pytest.fixture(scope="module")
def engine():
    engine = make_engine()
    yield engine
    engine.close()


def biased_engine(engine, text):
    """The shared engine with the weights of a biased policy."""
    policy = Biased(text)
    engine.load_weights(policy.build_model().named_parameters(), 0)
    return policy


@pytest.fixture
def plain(engine):
    """The shared engine with the weights of the tiny policy."""
    engine.load_weights(vllm_policy().build_model().named_parameters(), 0)
    return engine


def test_the_engine_satisfies_its_protocol(engine):
    assert isinstance(engine, Engine)
    assert engine.max_model_len == 160


def test_greedy_tokens_and_scores_equal_those_of_the_embedded_engine(pair):
    engine, policy = pair
    requests = [(prompt(n, n), params(12, temperature=0.0)) for n in (1, 6, 17, 40)]
    embedded = TransformersEngine(policy, max_num_seqs=4, max_model_len=160)
    for ours, theirs in zip(generate(engine, requests), generate(embedded, requests), strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.finish_reason is theirs.finish_reason
        assert ours.logprobs == pytest.approx(theirs.logprobs, **CLOSE)
        assert ours.entropies == pytest.approx(theirs.entropies, **CLOSE)


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


def test_a_branch_under_the_seed_of_its_trunk_does_not_repeat_its_random_numbers(engine):
    # All logits equal: tokens show nothing but the noise.
    model = vllm_policy().build_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    engine.load_weights(model.named_parameters(), 0)
    trunk = one(engine, PROMPT, params(8, seed=3))
    branch = one(engine, PROMPT + trunk.token_ids[:4], params(8, seed=3))
    assert trunk.entropies[0] == pytest.approx(math.log(268), abs=1e-5)  # float32
    assert branch.token_ids[:4] != trunk.token_ids[:4]


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
        ("missing", r"1 weights were not published, 'model\.layers\.1\.self_attn\.v_proj\.weight' among them"),
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
        return await task

    assert len(asyncio.run(run()).token_ids) == 20


def test_sleeping_changes_nothing_on_the_cpu(plain):
    before = one(plain)
    plain.sleep()
    assert one(plain).token_ids == before.token_ids


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("ab</x>", ("</x>",), "b</x>"),
        ("ab<search>q</search>", ("</python>", "</search>"), "b<search>q</search>"),
    ],
    ids=["over_four_tokens", "one_special_token"],
)
def test_a_stop_string_ends_the_generation_and_is_kept_whole(engine, text, stop, expected):
    policy = biased_engine(engine, text)
    generation = one(engine, policy.ids[:1], params(40, stop=stop, temperature=0.0))
    assert policy.tokenizer.decode(generation.token_ids) == expected
    assert generation.finish_reason is FinishReason.STOP
    assert len(generation.logprobs) == len(generation.entropies) == len(generation.token_ids)
    assert engine._llm.llm_engine.get_num_unfinished_requests() == 0


def test_a_stop_string_on_the_last_allowed_token_counts_as_a_stop(engine):
    policy = biased_engine(engine, "ab</x>")
    generation = one(engine, policy.ids[:1], params(5, stop=("</x>",), temperature=0.0))
    assert generation.finish_reason is FinishReason.STOP
    assert len(generation.token_ids) == 5


def test_the_end_of_sequence_token_ends_the_generation_and_is_kept(engine):
    policy = biased_engine(engine, "ab<eos>")
    generation = one(engine, policy.ids[:1], params(9, temperature=0.0))
    assert policy.tokenizer.decode(generation.token_ids) == "b<eos>"
    assert generation.finish_reason is FinishReason.EOS


@pytest.mark.parametrize(("max_tokens", "expected"), [(1, 1), (5, 5), (1000, 160 - 6)])
def test_a_generation_ends_at_max_tokens_or_when_the_context_is_full(engine, max_tokens, expected):
    policy = biased_engine(engine, "ab")
    generation = one(engine, policy.ids * 3, params(max_tokens))
    assert len(generation.token_ids) == expected
    assert generation.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("tokens", "each", "match"),
    [
        ([], params(), "must have between 1 and 159 tokens, but got 0"),
        ([3] * 160, params(), "must have between 1 and 159 tokens, but got 160"),
        ([3, 268], params(), r"must be in \[0, 268\), but got 3 to 268"),
        ([3], params(temperature=0.001), "`temperature` must be 0 or at least 0.01, but got 0.001"),
    ],
    ids=["empty", "too_long", "out_of_vocabulary", "almost_greedy"],
)
def test_a_request_that_cannot_be_served_is_refused(plain, tokens, each, match):
    with pytest.raises(EngineError, match=match):
        one(plain, tokens, each)
    assert not plain._requests


def test_the_longest_prompt_that_fits_yields_one_token(plain):
    assert len(one(plain, [3] * 159).token_ids) == 1


@pytest.mark.parametrize(("num_probe_tokens", "expected"), [(1, 1), (3, 3), (6, 6), (20, 6)])
def test_the_probe_comes_once_before_the_result_with_the_first_tokens(plain, num_probe_tokens, expected):
    probes = []

    async def run():
        each = params(6, num_probe_tokens=num_probe_tokens)
        task = asyncio.create_task(plain.generate(PROMPT, each, lambda p: probes.append((p, task.done()))))
        return await task

    whole = asyncio.run(run())
    (probe, was_done), *others = probes
    assert not others
    assert not was_done
    assert probe.token_ids == whole.token_ids[:expected]
    assert probe.logprobs == whole.logprobs[:expected]
    assert probe.entropies == whole.entropies[:expected]


def test_zero_probe_tokens_means_never(plain):
    probes = []
    one(plain, PROMPT, params(3), probes.append)
    assert probes == []


def test_a_probe_can_start_a_branch_that_shares_the_prefix_while_the_trunk_runs(plain):
    tokens, branches = prompt(BLOCK + 8), []

    async def run():
        def on_probe(_):
            branches.append(asyncio.create_task(plain.generate(tokens, params(4, seed=8))))

        trunk = asyncio.create_task(plain.generate(tokens, params(30, num_probe_tokens=2), on_probe))
        while not branches:
            await asyncio.sleep(0)
        branch = await branches[0]
        assert not trunk.done()
        return branch, await trunk

    branch, trunk = asyncio.run(run())
    assert branch.num_cached_tokens == BLOCK
    for generation in (branch, trunk):
        assert_exact(vllm_policy().build_model(), tokens, generation)


def test_an_error_in_a_probe_reaches_all_callers_and_the_engine_stays_usable(plain):
    expected = one(plain)

    def fail(_):
        raise KeyError("probe went wrong")

    async def run():
        failing = plain.generate(PROMPT, params(num_probe_tokens=3), fail)
        others = [plain.generate(PROMPT, params()) for _ in range(20)]
        return await asyncio.gather(failing, *others, return_exceptions=True)

    errors = asyncio.run(run())
    assert all(isinstance(error, EngineError) for error in errors)
    assert isinstance(errors[0].__cause__, KeyError)
    assert one(plain) == expected


def test_an_error_inside_vllm_reaches_the_caller():
    engine = make_engine(tiny_policy(head_dim=8))  # the CPU kernels have no heads of eight
    with pytest.raises(EngineError, match="head_dim=8"):
        one(engine)
    engine.close()


def test_cancelling_a_request_aborts_it_and_leaves_the_others_alone(plain):
    expected = one(plain, PROMPT, params(30, seed=4))

    async def run():
        other = asyncio.create_task(plain.generate(PROMPT, params(30, seed=4)))
        doomed = [asyncio.create_task(plain.generate(PROMPT, params(100, seed=s))) for s in range(20)]
        while len(plain._requests) < 21:
            await asyncio.sleep(0)
        for task in doomed:
            task.cancel()
        results = await asyncio.gather(*doomed, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        assert plain._llm.llm_engine.get_num_unfinished_requests() == len(plain._requests) == 1
        return await other

    assert asyncio.run(run()).token_ids == expected.token_ids


def test_nothing_keeps_running_after_the_last_request_was_cancelled(plain):
    async def run():
        task = asyncio.create_task(plain.generate(PROMPT, params(100)))
        while not plain._requests:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for _ in range(20):
            await asyncio.sleep(0)
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1  # the test itself
    assert plain._llm.llm_engine.get_num_unfinished_requests() == 0


def test_creating_and_running_an_engine_leaves_the_process_as_it_was():
    # Python's own generator is left out: the checks of annotations in tests draw from it.
    def state():
        return {
            "torch": torch.get_rng_state().tolist(),
            "numpy": np.random.get_state()[1].tolist(),
            "threads": (torch.get_num_threads(), torch.set_num_threads),
            "dtype": torch.get_default_dtype(),
        }

    before = state()
    engine = make_engine(seed=3)
    one(engine)
    engine.close()
    engine.close()
    after = state()
    assert [name for name in before if after[name] != before[name]] == []


def test_closing_or_collecting_an_engine_keeps_process_groups_and_other_engines(plain):
    expected = one(plain)
    for is_closed in (True, False):
        other = make_engine()
        one(other)
        if is_closed:
            other.close()
        del other
    assert torch.distributed.is_initialized()
    assert one(plain).token_ids == expected.token_ids


def test_closing_fails_what_still_runs_and_refuses_more():
    engine = make_engine()

    async def run():
        task = asyncio.create_task(engine.generate(PROMPT, params(100)))
        while not engine._requests:
            await asyncio.sleep(0)
        engine.close()
        return await asyncio.gather(task, return_exceptions=True)

    (error,) = asyncio.run(run())
    assert isinstance(error, EngineError)
    with pytest.raises(EngineError, match=r"The engine was closed\. Build a new one"):
        one(engine)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"max_model_len": 1}, "`max_model_len` must be at least 2 and `max_num_seqs` at least 1, but got 1 and 16"),
        ({"sleep_level": 3}, "`sleep_level` must be 1 or 2, but got 3"),
        ({"tensor_parallel_size": 2}, "`tensor_parallel_size` must be 1, but got 2"),
    ],
    ids=str,
)
def test_settings_without_meaning_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        make_engine(**settings)


def test_an_argument_that_vllm_does_not_know_is_reported_when_it_starts():
    with pytest.raises(EngineError, match=r"vLLM could not start.*block_sise"):
        one(make_engine(block_sise=32))


def test_a_whole_rollout_of_the_trail_task():
    task = TrailTask()
    policy = vllm_policy(tokenizer=build_word_tokenizer(vocabulary(task)))
    engine = make_engine(policy, max_num_seqs=32, max_model_len=256)
    parts = RolloutParts(
        engine=engine,
        tools=ToolRuntime(tools=(CorpusSearch(),)),
        reward=PaperReward(),
        protocol=TagProtocol(policy.tokenizer, ("search",)),
        allocator=FixedBudget(num_root_chains=2),
        branch_policy=EntropyBalanced(alpha=1.0),
        settings=RolloutSettings(budget=4, max_response_tokens=64, turn_entropy=TurnEntropy(num_tokens=4)),
    )
    trees = RolloutSampler(parts).rollout([task.question("train", index) for index in range(6)], seed=0)
    again = RolloutSampler(parts).rollout([task.question("train", index) for index in range(6)], seed=0)
    model = policy.build_model()
    num_calls = 0
    for tree, same in zip(trees, again, strict=True):
        assert len(tree.leaves) == 4
        assert [segment.token_ids for segment in tree.path(tree.leaves[0].segment_id)] == [
            segment.token_ids for segment in same.path(same.leaves[0].segment_id)
        ]
        for leaf in tree.leaves:
            num_calls += leaf.num_tool_calls
            tokens, sampled = [], []
            for segment in tree.path(leaf.segment_id):
                sampled += list(zip(range(len(tokens), 10**6), segment.logprobs, strict=False))
                tokens += segment.token_ids
            logprobs, _ = reference_scores(model, tokens, 1)
            assert [logprobs[position - 1] for position, _ in sampled] == pytest.approx(
                [logprob for _, logprob in sampled], **CLOSE
            )
    assert num_calls > 0
    engine.close()
