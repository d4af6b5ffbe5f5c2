"""vLLM in process: ends, errors, probes, cancellation, the process around it, a whole rollout."""

import asyncio

import numpy as np
import pytest
import torch

from aepo_lightning.branching import EntropyBalanced
from aepo_lightning.chat_formats.tags import TagFormat
from aepo_lightning.contracts.generation import FinishReason
from aepo_lightning.errors import EngineError
from aepo_lightning.policy.tokenizers import build_word_tokenizer
from aepo_lightning.rewards import PaperReward
from aepo_lightning.rollout import RolloutParts, RolloutSampler, RolloutSettings
from aepo_lightning.rollout.turn_entropy import TurnEntropy
from aepo_lightning.tasks import TrailTask
from aepo_lightning.tasks.trail import vocabulary
from aepo_lightning.tools import DocumentSearch, ToolRuntime
from tests.support.builders import RootChains, reference_scores, tiny_policy
from tests.support.extras import needs
from tests.support.slow import first_quick
from tests.support.vllm_parts import (
    BLOCK,
    CLOSE,
    PROMPT,
    assert_exact,
    biased_engine,
    make_engine,
    one,
    params,
    prompt,
    vllm_policy,
)

# vLLM warns about its own imports; its name without the package is what an environment without the extra has.
pytestmark = pytest.mark.filterwarnings("ignore:::vllm", "ignore::DeprecationWarning", "ignore::FutureWarning")
needs("vllm", "vllm")


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
    assert engine._core.num_unfinished() == 0


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
    ],
    ids=["empty", "too_long", "out_of_vocabulary"],
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

        trunk = asyncio.create_task(plain.generate(tokens, params(30, seed=2, num_probe_tokens=2), on_probe))
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


def break_at_step(engine, number):
    """Let the model of a running engine fail in its forward pass number `number` from now."""
    model = engine._core._llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
    passes = iter(range(1, 10**6))

    def hook(*_):
        if next(passes) >= number:
            raise RuntimeError("out of memory")

    model.register_forward_pre_hook(hook)


@pytest.mark.parametrize("number", first_quick([5, 1]))
def test_an_engine_that_fails_in_a_step_fails_every_request_and_says_so_ever_after(plain, number):
    engine, expected = make_engine(max_num_seqs=2), one(plain)
    one(engine)
    break_at_step(engine, number)

    async def run():
        # More than run at once: those that wait fail as well.
        tasks = [engine.generate(PROMPT, params(50, seed=seed)) for seed in range(5)]
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), timeout=60)

    message = r"vLLM failed in the middle of a step .*out of memory.* Build a new engine, and if memory ran out"
    for error in asyncio.run(run()):
        with pytest.raises(EngineError, match=message):
            raise error
    assert not engine._requests
    with pytest.raises(EngineError, match=message):
        one(engine)
    with pytest.raises(EngineError, match=message):
        engine.load_weights(vllm_policy().build_model().named_parameters(), 1)
    engine.close()
    assert one(plain) == expected  # an engine beside it goes on


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
        assert plain._core.num_unfinished() == len(plain._requests) == 1
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
    assert plain._core.num_unfinished() == 0


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


@pytest.mark.slow
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
        ({"tensor_parallel_size": -1}, "`tensor_parallel_size` must be positive, but got -1"),
    ],
    ids=str,
)
def test_settings_without_meaning_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        make_engine(**settings)


def test_an_engine_cannot_span_more_ranks_than_there_are():
    with pytest.raises(EngineError, match="`tensor_parallel_size` must divide the number of ranks, but got 2 for 1"):
        one(make_engine(tensor_parallel_size=2))


def test_an_argument_that_vllm_does_not_know_is_reported_when_it_starts():
    with pytest.raises(EngineError, match=r"vLLM could not start.*block_sise"):
        one(make_engine(block_sise=32))


def test_a_whole_rollout_of_the_trail_task():
    task = TrailTask()
    policy = vllm_policy(tokenizer=build_word_tokenizer(vocabulary(task)))
    engine = make_engine(policy, max_num_seqs=32, max_model_len=256)
    parts = RolloutParts(
        engine=engine,
        tools=ToolRuntime(tools=(DocumentSearch(),)),
        reward=PaperReward(),
        chat_format=TagFormat(policy.tokenizer, ("search",)),
        allocator=RootChains(num_root_chains=2),
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
