"""Decoding steps of fixed shape: the numbers of the dynamic path, whatever lies in which row."""

import asyncio

import pytest
import torch

from aepo_lightning.contracts.generation import FinishReason, SamplingParams
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.engines.transformers.static_decoding import CaptureError, LaunchedStep, rounded_up, static_length
from aepo_lightning.errors import EngineError
from tests.support.builders import tiny_policy, with_head_bias
from tests.support.static_engine import KINDS, assert_same, generate, prompt, static_engine, traced, turns

SIZES = {"max_num_seqs": 8, "max_model_len": 64}
MODELS = {
    "qwen3": {"model_type": "qwen3"},
    "gemma3_capped": {"model_type": "gemma3_text", "head_dim": 8, "final_logit_softcapping": 2.0},
}


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_turns_and_branches_are_those_of_the_dynamic_path(fields, monkeypatch):
    policy = with_head_bias(tiny_policy(**fields))
    engine = static_engine(monkeypatch, policy)
    assert engine._decoder is not None
    assert_same(turns(engine, num_turns=1), turns(TransformersEngine(policy, **SIZES), num_turns=1))
    assert engine._decoder.shapes


def test_slots_that_move_between_rows_keep_what_they_hold(monkeypatch):
    policy, sizes = tiny_policy(), {"max_num_seqs": 2, "num_slots": 3, "block_size": 2}
    engine, moved = static_engine(monkeypatch, policy, **sizes), []
    exchange = engine._cache.rows.exchange
    monkeypatch.setattr(engine._cache.rows, "exchange", lambda pairs: moved.extend(pairs) or exchange(pairs))
    assert_same(turns(engine, 5, 2), turns(TransformersEngine(policy, max_model_len=64, **sizes), 5, 2))
    assert moved


def test_a_step_is_a_fixed_list_of_operations_on_fixed_tensors(monkeypatch):
    policy = tiny_policy()
    engine = static_engine(monkeypatch, policy, traced, max_num_seqs=4)
    requests = [(prompt(9, n), SamplingParams(max_tokens=6, seed=n, **kind)) for n, kind in enumerate(KINDS[:4])]
    assert_same(generate(engine, requests), generate(TransformersEngine(policy, **SIZES), requests))
    assert engine._decoder is not None


def test_weights_are_written_where_captured_steps_read_them(monkeypatch):
    first, second = tiny_policy(), tiny_policy(initializer_range=0.3)
    engine = static_engine(monkeypatch, first, traced, max_num_seqs=1)
    request = [(prompt(5), SamplingParams(max_tokens=6, seed=1))]
    addresses = [parameter.data_ptr() for parameter in engine._model.parameters()]
    before = generate(engine, request)
    num_shapes = len(engine._decoder.shapes)
    engine.load_weights(second.build_model().named_parameters(), 1)
    after = generate(engine, request)
    assert [parameter.data_ptr() for parameter in engine._model.parameters()] == addresses
    assert len(engine._decoder.shapes) == num_shapes
    assert_same(before, generate(TransformersEngine(first, **SIZES), request))
    assert_same(after, generate(TransformersEngine(second, **SIZES), request))
    assert before[0].token_ids != after[0].token_ids


def test_rows_shrink_with_the_number_of_running_requests_and_spans_grow_with_their_length(monkeypatch):
    engine = static_engine(monkeypatch, tiny_policy(), max_num_seqs=20, max_model_len=300)
    generate(engine, [(prompt(4 + n, n), SamplingParams(max_tokens=2 if n < 12 else 8, seed=n)) for n in range(20)])
    generate(engine, [(prompt(126), SamplingParams(max_tokens=4))])
    shapes = [(shape.num_rows, shape.span) for shape in engine._decoder.shapes]
    assert shapes == [(20, 128), (8, 128), (8, 192)]


def test_a_model_that_cannot_be_captured_is_served_without_and_named(monkeypatch, caplog):
    def fail(step):
        raise RuntimeError("operation not permitted when stream is capturing")

    policy, request = tiny_policy(), [(prompt(5), SamplingParams(max_tokens=4, seed=3))]
    engine = static_engine(monkeypatch, policy, fail)
    found = generate(engine, request)
    assert_same(found, generate(TransformersEngine(policy, **SIZES), request))
    assert engine._decoder is None
    assert "decodes without CUDA graphs" in caplog.text
    assert "not permitted when stream is capturing" in caplog.text
    with pytest.raises(EngineError, match=r"`engine\.cuda_graphs=auto`"):
        generate(static_engine(monkeypatch, policy, fail, cuda_graphs=True), request)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model_type": "mixtral", "num_local_experts": 4}, "choose among 4 experts"),
        (
            {"model_type": "llama", "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            r"rotary embeddings \(dynamic\)",
        ),
    ],
    ids=["experts", "rope"],
)
def test_models_that_decide_on_the_host_are_named_at_the_start(fields, reason, monkeypatch, caplog):
    assert static_engine(monkeypatch, tiny_policy(**fields))._decoder is None
    assert reason.replace("\\", "") in caplog.text
    with pytest.raises(CaptureError, match=reason):
        static_engine(monkeypatch, tiny_policy(**fields), cuda_graphs=True)


def test_a_step_that_computes_something_else_is_refused(monkeypatch):
    engine = static_engine(monkeypatch, tiny_policy())
    monkeypatch.setattr(engine._decoder, "_mask", lambda positions, span: torch.zeros(len(positions), 1, 1, span))
    with pytest.raises(CaptureError, match="differ by"):
        engine._decoder.check()


@pytest.mark.parametrize(
    ("number", "least", "most", "expected"),
    [
        (1, 8, 256, 8),
        (8, 8, 256, 8),
        (9, 8, 256, 16),
        (65, 8, 256, 96),
        (97, 8, 256, 128),
        (129, 8, 150, 150),
        (3, 8, 5, 5),
    ],
)
def test_sizes_are_rounded_up(number, least, most, expected):
    assert rounded_up(number, least, most) == expected


@pytest.mark.parametrize(("max_model_len", "expected"), [(2, 64), (63, 64), (64, 128), (512, 576)])
def test_a_static_cache_has_a_position_beyond_the_longest_sequence(max_model_len, expected):
    assert static_length(max_model_len) == expected
    assert expected > max_model_len


def test_a_step_is_started_before_the_one_before_it_is_read(monkeypatch):
    engine, events = static_engine(monkeypatch, tiny_policy()), []
    launch, read = engine._decoder.launch, LaunchedStep.read
    monkeypatch.setattr(engine._decoder, "launch", lambda *given: events.append("launch") or launch(*given))
    monkeypatch.setattr(LaunchedStep, "read", lambda step: events.append("read") or read(step))
    generate(engine, [(prompt(5), SamplingParams(max_tokens=5))])
    # The prompt gives the first token, and no step is started beyond the last.
    assert events == ["launch", "launch", "read", "launch", "read", "launch", "read", "read"]


def test_generations_that_end_while_the_next_step_runs_leave_the_others_exact(monkeypatch):
    policy, sizes = tiny_policy(), {"max_num_seqs": 3, "num_slots": 4, "block_size": 2}
    stops = tuple("aeiou0123456789")
    first = [(prompt(4 + n % 3, n), SamplingParams(max_tokens=12, seed=n, stop=stops)) for n in range(16)]

    def twice(engine):
        found = generate(engine, first)
        second = [
            ([*tokens, *each.token_ids, 9], SamplingParams(max_tokens=9, seed=5, stop=stops))
            for (tokens, _), each in zip(first, found, strict=True)
        ]
        return found + generate(engine, second)

    found = twice(static_engine(monkeypatch, policy, **sizes))
    assert sum(each.finish_reason is FinishReason.STOP for each in found) > 8
    assert_same(found, twice(TransformersEngine(policy, max_model_len=64, **sizes)))


def test_a_request_that_is_cancelled_while_its_step_runs_is_dropped(monkeypatch):
    policy = tiny_policy()
    engine = static_engine(monkeypatch, policy)
    kept = (prompt(7), SamplingParams(max_tokens=12, seed=2))

    async def run():
        task = asyncio.create_task(engine.generate(prompt(5), SamplingParams(max_tokens=40, seed=1)))
        other = asyncio.create_task(engine.generate(*kept))
        while engine._in_flight is None or len(engine._in_flight.requests) < 2:
            await asyncio.sleep(0)
        task.cancel()
        return await other

    found = asyncio.run(run())
    assert_same([found], generate(TransformersEngine(policy, **SIZES), [kept]))
    assert engine._prefixes.num_idle == 16
    assert not engine._running


def test_requests_that_come_one_by_one_share_passes_over_their_prompts(monkeypatch):
    policy = tiny_policy()
    engine = static_engine(monkeypatch, policy, max_num_seqs=16, num_slots=32)
    fed, forward = [], engine._forward
    monkeypatch.setattr(engine, "_forward", lambda requests: fed.append(len(requests)) or forward(requests))
    requests = [(prompt(6 + n, n), SamplingParams(max_tokens=30, seed=n)) for n in range(12)]

    async def run():
        running = [asyncio.create_task(engine.generate(*each)) for each in requests[:10]]
        await asyncio.sleep(0)
        for each in requests[10:]:
            num_tokens = engine.counters.num_generated_tokens
            while engine.counters.num_generated_tokens < num_tokens + 10:
                await asyncio.sleep(0)
            running.append(asyncio.create_task(engine.generate(*each)))
        return await asyncio.gather(*running)

    assert_same(asyncio.run(run()), generate(TransformersEngine(policy, **SIZES | {"max_num_seqs": 16}), requests))
    assert fed == [10, 2]  # the eleventh waited for the twelfth, a step later


def test_a_request_that_comes_alone_waits_for_a_few_steps_only(monkeypatch):
    engine = static_engine(monkeypatch, tiny_policy(), max_num_seqs=16, num_slots=32)
    steps, step = [], engine._step
    monkeypatch.setattr(engine, "_step", lambda: steps.append(len(engine._waiting)) or step())

    async def run():
        running = [asyncio.create_task(engine.generate(prompt(6, n), SamplingParams(max_tokens=50))) for n in range(10)]
        while engine.counters.num_generated_tokens < 30:
            await asyncio.sleep(0)
        await engine.generate(prompt(9), SamplingParams(max_tokens=2))
        return await asyncio.gather(*running)

    asyncio.run(run())
    assert 8 < steps.count(1) <= 16
