"""The embedded engine over time: how generations end, probes, errors, cancellation, new weights, event loops."""

import asyncio
from contextlib import closing

import pytest
import torch

from aepo_lightning.contracts.generation import FinishReason, SamplingParams
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.errors import EngineError
from tests.support.builders import Biased, reference_scores, tiny_policy

PROMPT = [5, 9, 30, 8, 70, 61]


def biased(text):
    return Biased(text, tiny_policy(tie_word_embeddings=False))


def make_engine(policy=None, **settings):
    return TransformersEngine(policy or tiny_policy(), **({"max_num_seqs": 4, "max_model_len": 64} | settings))


def params(max_tokens=6, **fields):
    return SamplingParams(max_tokens=max_tokens, **fields)


def generate(engine, tokens=PROMPT, each=None, on_probe=None):
    return asyncio.run(engine.generate(list(tokens), each or params(), on_probe))


def assert_idle(engine):
    assert engine._prefixes.num_idle == len(engine._prefixes._tokens)
    assert not engine._running
    assert not engine._waiting


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("ab</x>", ("</x>",), "b</x>"),
        ("ab<search>q</search>", ("</python>", "</search>"), "b<search>q</search>"),
    ],
    ids=["over_four_tokens", "one_token"],
)
def test_a_stop_string_ends_the_generation_and_is_kept_whole(text, stop, expected):
    policy = biased(text)
    generation = generate(make_engine(policy), policy.ids[:1], params(40, stop=stop, temperature=0.0))
    assert policy.tokenizer.decode(generation.token_ids) == expected
    assert generation.finish_reason is FinishReason.STOP


def test_a_stop_string_on_the_last_allowed_token_counts_as_a_stop():
    policy = biased("ab</x>")
    generation = generate(make_engine(policy), policy.ids[:1], params(5, stop=("</x>",), temperature=0.0))
    assert generation.finish_reason is FinishReason.STOP
    assert len(generation.token_ids) == 5


def test_text_of_the_prompt_does_not_complete_a_stop_string():
    policy = biased("ab</x>")
    tokens = policy.ids[:5]  # ab</x
    generation = generate(make_engine(policy), tokens, params(3, stop=("</x>",), temperature=0.0))
    assert policy.tokenizer.decode(generation.token_ids) == ">ab"
    assert generation.finish_reason is FinishReason.LENGTH


def test_the_end_of_sequence_token_ends_the_generation_and_is_kept():
    policy = biased("ab<eos>")
    generation = generate(make_engine(policy), policy.ids[:1], params(9, temperature=0.0))
    assert policy.tokenizer.decode(generation.token_ids) == "b<eos>"
    assert generation.finish_reason is FinishReason.EOS


@pytest.mark.parametrize(("max_tokens", "expected"), [(1, 1), (5, 5), (1000, 64 - 6)])
def test_a_generation_ends_at_max_tokens_or_when_the_context_is_full(max_tokens, expected):
    policy = biased("ab")
    generation = generate(make_engine(policy), policy.ids * 3, params(max_tokens))
    assert len(generation.token_ids) == expected
    assert generation.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("length", [0, 64, 100])
def test_an_empty_or_too_long_prompt_is_refused(length):
    engine = make_engine()
    with pytest.raises(EngineError, match=f"must have between 1 and 63 tokens, but got {length}"):
        generate(engine, [3] * length)
    assert_idle(engine)


def test_the_longest_prompt_that_fits_yields_one_token():
    assert len(generate(make_engine(), [3] * 63).token_ids) == 1


@pytest.mark.parametrize(
    ("num_probe_tokens", "max_tokens", "expected"),
    [(1, 6, 1), (3, 6, 3), (6, 6, 6), (20, 6, 6)],
)
def test_the_probe_comes_once_before_the_result_with_the_first_tokens(num_probe_tokens, max_tokens, expected):
    engine, probes = make_engine(), []

    async def run():
        task = asyncio.create_task(
            engine.generate(
                PROMPT, params(max_tokens, num_probe_tokens=num_probe_tokens), lambda p: probes.append((p, task.done()))
            )
        )
        return await task

    whole = asyncio.run(run())
    (probe, was_done), *others = probes
    assert not others
    assert not was_done
    assert probe.token_ids == whole.token_ids[:expected]
    assert probe.logprobs == whole.logprobs[:expected]
    assert probe.entropies == whole.entropies[:expected]


def test_the_probe_comes_when_a_generation_ends_early():
    policy, probes = biased("ab<eos>"), []
    generate(make_engine(policy), policy.ids[:1], params(9, num_probe_tokens=5, temperature=0.0), probes.append)
    assert [probe.finish_reason for probe in probes] == [FinishReason.EOS]


def test_zero_probe_tokens_means_never():
    probes = []
    generate(make_engine(), PROMPT, params(3), probes.append)
    assert probes == []


def test_a_probe_can_start_a_branch_while_the_trunk_runs():
    engine, policy = make_engine(block_size=2), tiny_policy()
    branches = []

    async def run():
        def on_probe(_):
            branches.append(asyncio.create_task(engine.generate(PROMPT, params(4, seed=8))))

        trunk = asyncio.create_task(engine.generate(PROMPT, params(30, num_probe_tokens=2), on_probe))
        while not branches:
            await asyncio.sleep(0)
        branch = await branches[0]
        assert not trunk.done()
        return branch, await trunk

    branch, trunk = asyncio.run(run())
    assert branch.num_cached_tokens == len(PROMPT) - 1
    for generation in (branch, trunk):
        logprobs, _ = reference_scores(policy.build_model(), PROMPT + generation.token_ids, len(PROMPT))
        assert generation.logprobs == pytest.approx(logprobs, abs=5e-6, rel=5e-6)  # float32 sums in another order


@pytest.mark.parametrize("at", [1, 4], ids=["at_the_prompt", "while_decoding"])
def test_an_error_in_a_probe_reaches_the_callers_and_the_engine_stays_usable(at):
    engine, expected = make_engine(), generate(make_engine())

    def fail(_):
        raise KeyError("probe went wrong")

    async def run():
        requests = [
            engine.generate(PROMPT, params(num_probe_tokens=at), fail),
            *(engine.generate(PROMPT, params()) for _ in range(6)),
        ]
        return await asyncio.gather(*requests, return_exceptions=True)

    errors = asyncio.run(run())
    assert all(isinstance(error, EngineError) for error in errors)
    assert "probe went wrong" in str(errors[0])
    assert isinstance(errors[0].__cause__, KeyError)
    assert_idle(engine)
    again = generate(engine)
    assert again.token_ids == expected.token_ids


def test_an_error_in_the_forward_pass_reaches_the_caller_and_the_engine_stays_usable():
    engine, expected = make_engine(), generate(make_engine())
    with pytest.raises(EngineError, match="A generation step failed: IndexError"):
        generate(engine, [10_000] * 6)
    assert_idle(engine)
    assert generate(engine).token_ids == expected.token_ids


def test_cancelling_a_running_request_frees_its_slot_and_leaves_the_others_alone():
    engine = make_engine()
    expected = generate(make_engine(), PROMPT, params(20, seed=4))

    async def run():
        other = asyncio.create_task(engine.generate(PROMPT, params(20, seed=4)))
        doomed = [asyncio.create_task(engine.generate(PROMPT, params(50, seed=s))) for s in range(6)]
        while not engine._running:
            await asyncio.sleep(0)
        assert engine._waiting
        for task in doomed:
            task.cancel()
        results = await asyncio.gather(*doomed, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        assert len(engine._running) + len(engine._waiting) == 1
        return await other

    assert asyncio.run(run()).token_ids == expected.token_ids
    assert_idle(engine)


def test_nothing_keeps_running_after_the_last_request_was_cancelled():
    engine = make_engine()

    async def run():
        task = asyncio.create_task(engine.generate(PROMPT, params(50)))
        while not engine._running:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        passes = engine.counters.num_forward_passes
        for _ in range(20):
            await asyncio.sleep(0)
        assert engine.counters.num_forward_passes == passes
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1  # the test itself
    assert_idle(engine)


def test_cancelled_prompts_end_with_the_pass_that_runs_however_many_were_to_come(monkeypatch):
    engine = make_engine(max_num_seqs=8, num_slots=8, max_prefill_tokens=4)
    expected, forward, passes = generate(make_engine(), PROMPT, params(3)), engine._forward, []

    async def run():
        waiting = [asyncio.create_task(engine.generate([token, *PROMPT], params(3))) for token in range(8)]

        def cancel_in_the_first(requests):
            passes.append(len(requests))
            if len(passes) == 1:
                for task in waiting:
                    asyncio.get_running_loop().call_soon(task.cancel)
            forward(requests)

        monkeypatch.setattr(engine, "_forward", cancel_in_the_first)
        return await asyncio.gather(*waiting, return_exceptions=True)

    assert all(isinstance(result, asyncio.CancelledError) for result in asyncio.run(run()))
    assert passes == [1], "the prompts of the seven others were not computed"
    assert_idle(engine)
    assert generate(engine, PROMPT, params(3)).token_ids == expected.token_ids


def test_the_probe_of_a_cancelled_request_never_comes():
    engine, probes = make_engine(), []

    async def run():
        task = asyncio.create_task(engine.generate(PROMPT, params(50, num_probe_tokens=3), probes.append))
        while not engine._running or engine._running[0].num_new < 2:
            await asyncio.sleep(0)
        task.cancel()
        engine._step()  # the engine's turn comes before that of the cancelled task
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert probes == []
    assert_idle(engine)


def test_one_engine_serves_several_event_loops_also_after_an_interrupted_one():
    engine, expected = make_engine(), generate(make_engine())
    assert generate(engine).token_ids == expected.token_ids

    async def interrupted():
        asyncio.create_task(engine.generate(PROMPT, params(50)))  # noqa: RUF006
        while not engine._running:
            await asyncio.sleep(0)

    asyncio.run(interrupted())
    assert_idle(engine)
    assert generate(engine).token_ids == expected.token_ids


def test_a_loop_that_was_stopped_half_way_does_not_block_the_next():
    engine, expected = make_engine(), generate(make_engine(), PROMPT, params(50))
    with closing(asyncio.new_event_loop()) as loop:
        task = loop.create_task(engine.generate(PROMPT, params(50)))
        loop.run_until_complete(asyncio.sleep(0))
        assert engine._waiting
        other = asyncio.run(asyncio.wait_for(engine.generate(PROMPT, params(5)), 60))
        assert other.token_ids == expected.token_ids[:5]
        assert loop.run_until_complete(task).token_ids == expected.token_ids


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_new_weights_change_the_output_and_forget_every_prefix(is_tied):
    policy = tiny_policy(tie_word_embeddings=is_tied)
    other = tiny_policy(tie_word_embeddings=is_tied)
    other.seed = 1
    engine = make_engine(policy, block_size=2)
    before = generate(engine)
    assert generate(engine).num_cached_tokens == len(PROMPT) - 1
    model = other.build_model()
    engine.load_weights(model.named_parameters(), 7)
    after = generate(engine)
    assert engine.weights_version == 7
    assert after.num_cached_tokens == 0
    assert after.logprobs != before.logprobs
    logprobs, _ = reference_scores(model, PROMPT + after.token_ids, len(PROMPT))
    assert after.logprobs == pytest.approx(logprobs, abs=5e-6, rel=5e-6)  # float32 sums in another order


def test_a_tied_weight_may_come_under_either_name():
    policy = tiny_policy(tie_word_embeddings=True)
    names = {"model.embed_tokens.weight": "lm_head.weight"}
    weights = [(names.get(name, name), tensor) for name, tensor in policy.build_model().named_parameters()]
    assert "lm_head.weight" in dict(weights)
    make_engine(policy).load_weights(weights, 1)


def wrong_weights(kind):
    weights = dict(tiny_policy().build_model().named_parameters())
    name = "model.layers.1.mlp.up_proj.weight"
    if kind == "unknown":
        weights["model.layers.9.mlp.up_proj.weight"] = weights[name]
    elif kind == "missing":
        del weights[name]
    else:
        weights[name] = weights[name][:, :1]  # would broadcast
    return weights.items()


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("unknown", r"no weight named 'model.layers.9.mlp.up_proj.weight'"),
        ("missing", r"1 are missing, 'model.layers.1.mlp.up_proj.weight' among them"),
        ("shape", r"'model.layers.1.mlp.up_proj.weight' must have shape \(64, 32\), but got \(64, 1\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_no_stale_prefix_survives(kind, match):
    engine = make_engine(block_size=2)
    generate(engine)
    with pytest.raises(EngineError, match=match):
        engine.load_weights(wrong_weights(kind), 3)
    assert engine.weights_version == 0
    assert generate(engine).num_cached_tokens == 0


def test_weights_do_not_change_while_requests_run():
    engine = make_engine()

    async def run():
        task = asyncio.create_task(engine.generate(PROMPT, params(10)))
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="Weights must not change while requests run"):
            engine.load_weights([], 1)
        return await task

    assert len(asyncio.run(run()).token_ids) == 10


def test_the_engine_has_weights_of_its_own():
    policy = tiny_policy()
    engine = make_engine(policy)
    before = generate(engine)
    with torch.no_grad():
        policy.build_model().model.norm.weight.zero_()
    assert generate(engine).logprobs == pytest.approx(before.logprobs, abs=1e-6)  # with a warm cache


def test_closing_fails_what_waits_and_may_be_done_twice():
    engine = make_engine()

    async def run():
        tasks = [asyncio.create_task(engine.generate(PROMPT, params(50))) for _ in range(6)]
        while not engine._running:
            await asyncio.sleep(0)
        engine.close()
        engine.close()
        return await asyncio.gather(*tasks, return_exceptions=True)

    errors = asyncio.run(run())
    assert all(isinstance(error, EngineError) and "closed" in str(error) for error in errors)
    assert_idle(engine)


def test_generating_leaves_the_global_random_state_alone():
    engine = make_engine()
    before = torch.get_rng_state()
    generate(engine)
    assert torch.equal(torch.get_rng_state(), before)
