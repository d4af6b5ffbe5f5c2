"""What stands between a call and its tool: cache, shared calls, queue, rate, circuit breaker, attempts."""

import asyncio

import pytest

from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.contracts.tool import RetryPolicy, ToolCall, ToolLimits, ToolResult, ToolSpec, ToolState, ToolStatus
from aepo_lightning.errors import ToolError, ToolUnavailableError
from aepo_lightning.tools import ToolRuntime
from aepo_lightning.tools.runtime.arguments import call_key
from aepo_lightning.tools.runtime.cache import ToolCache
from tests.support.skipped_time import run_skipping
from tests.support.tool_parts import CountingTool, call_of, make_context

OTHER = Question(question_id="other", messages=(), answers=("x",))


class DictCache:
    """A cache that forgets when it is told to."""

    def __init__(self):
        self.answers = {}

    def get(self, key):
        return self.answers.get(key)

    def put(self, key, _tool, answer, _ttl_s):
        self.answers[key] = answer

    def flush(self):
        pass

    def close(self):
        pass


def ask(runtime, tool, *texts, contexts=None, runner=asyncio.run):
    """Make calls at the same time, each of a chain of its own."""

    async def run():
        chains = contexts or [make_context(path=("r", number)) for number in range(len(texts))]
        calls = [call_of(tool, text) for text in texts]
        return await asyncio.gather(*(runtime.call(call, chain) for call, chain in zip(calls, chains, strict=True)))

    return runner(run())


# Attempts -------------------------------------------------------------------------------------------------------------


def test_named_failures_are_tried_again_and_others_are_not():
    limits = ToolLimits(retry=RetryPolicy(max_attempts=3, backoff_s=0.0))
    down, wrong = ToolUnavailableError("down"), ToolError("no such page")
    tool = CountingTool(script=[down, down, "there"], limits=limits)
    (result,) = ask(ToolRuntime(tools=[tool]), tool, "x")
    assert (result.status, result.text, result.num_attempts) == (ToolStatus.OK, "there", 3)
    tool = CountingTool(script=[wrong, "there"], limits=limits)
    (result,) = ask(ToolRuntime(tools=[tool]), tool, "x")
    assert (result.status, result.num_attempts) == (ToolStatus.ERROR, 1)


def test_the_last_attempt_speaks():
    tool = CountingTool(
        script=[ToolUnavailableError("one"), ToolUnavailableError("two")],
        limits=ToolLimits(retry=RetryPolicy(max_attempts=2, backoff_s=0.0)),
    )
    (result,) = ask(ToolRuntime(tools=[tool]), tool, "x")
    assert (result.status, result.text) == (ToolStatus.UNAVAILABLE, "Error: Tool(probe) failed: two")


def test_the_deadline_ends_waits_between_attempts_too():
    tool = CountingTool(
        script=[ToolUnavailableError("wait")],
        limits=ToolLimits(deadline_s=0.1, retry=RetryPolicy(max_attempts=2, backoff_s=60.0)),
    )
    (result,) = ask(ToolRuntime(tools=[tool]), tool, "x", runner=run_skipping)
    assert (result.status, result.num_attempts) == (ToolStatus.TIMEOUT, 1)


def test_a_server_that_asks_for_more_time_than_there_is_is_believed_at_once():
    tool = CountingTool(
        script=[ToolUnavailableError("status 429.", retry_after_s=3600.0)],
        limits=ToolLimits(deadline_s=1800.0, retry=RetryPolicy(max_attempts=2)),
    )
    (result,) = ask(ToolRuntime(tools=[tool]), tool, "x")
    assert (result.status, result.text) == (ToolStatus.UNAVAILABLE, "Error: Tool(probe) failed: status 429.")


# Queue ----------------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_and_the_rest_run_in_order():
    tool = CountingTool(limits=ToolLimits(max_concurrent_calls=2, max_queued_calls=1))
    results = ask(ToolRuntime(tools=[tool]), tool, *"abcde")
    assert [result.status for result in results] == [ToolStatus.OK] * 3 + [ToolStatus.BUSY] * 2
    assert tool.calls == ["a", "b", "c"]
    assert tool.most_running == 2


def test_a_hung_tool_holds_its_own_slots_only():
    hung = CountingTool(script=[30] * 4, name="hung", limits=ToolLimits(max_concurrent_calls=2))
    good = CountingTool(name="good")
    runtime = ToolRuntime(tools=[hung, good], max_concurrent_calls=2)

    async def run():
        stuck = [asyncio.create_task(runtime.call(call_of(hung), make_context())) for _ in range(4)]
        await asyncio.sleep(0)
        found = await asyncio.gather(*(runtime.call(call_of(good, str(n)), make_context()) for n in range(20)))
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        return found

    assert all(result.status is ToolStatus.OK for result in asyncio.run(run()))
    assert hung.num_running == 0


def test_calls_start_no_faster_than_the_rate():
    tool = CountingTool(limits=ToolLimits(calls_per_second=20.0))
    runtime = ToolRuntime(tools=[tool])

    async def run():
        loop = asyncio.get_running_loop()
        started = loop.time()
        await asyncio.gather(*(runtime.call(call_of(tool, str(n)), make_context()) for n in range(30)))
        return loop.time() - started

    # A bucket of one second lets 20 pass at once; the other 10 leak in at 20 a second.
    assert asyncio.run(run()) > 0.4


# Circuit breaker ------------------------------------------------------------------------------------------------------


def test_an_open_circuit_answers_without_calling():
    down = [ToolUnavailableError("down")] * 3
    tool = CountingTool(script=down, limits=ToolLimits(breaker_failures=2, max_concurrent_calls=1))
    results = ask(ToolRuntime(tools=[tool]), tool, *"abc")
    assert [result.status for result in results] == [ToolStatus.UNAVAILABLE] * 3
    assert tool.calls == ["a", "b"]
    assert results[2].text == "Error: Tool(probe) is unavailable at the moment."


def test_tools_of_one_provider_are_left_alone_together():
    limits = ToolLimits(breaker_failures=1)
    down, sister, other = (
        CountingTool(name=name, provider=provider, script=[ToolUnavailableError("down")] * 2, limits=limits)
        for name, provider in (("down", "p"), ("sister", "p"), ("other", "q"))
    )
    runtime = ToolRuntime(tools=[down, sister, other])

    async def one_after_another():
        return [await runtime.call(call_of(tool, "a"), make_context()) for tool in (down, sister, other)]

    assert "unavailable at the moment" in asyncio.run(one_after_another())[1].text
    assert [tool.calls for tool in (down, sister, other)] == [["a"], [], ["a"]]


def test_what_the_policy_did_wrong_opens_no_circuit():
    tool = CountingTool(script=[ToolError("bad")] * 5, limits=ToolLimits(breaker_failures=1, max_concurrent_calls=1))
    results = ask(ToolRuntime(tools=[tool]), tool, *"abcde")
    assert [result.status for result in results] == [ToolStatus.ERROR] * 5


# Shared calls and the cache -------------------------------------------------------------------------------------------


def test_equal_calls_at_the_same_time_are_made_once():
    tool = CountingTool(limits=ToolLimits(is_single_flight=True))
    results = ask(ToolRuntime(tools=[tool]), tool, "a", "b", "a", "a")
    assert tool.calls == ["a", "b"]
    assert [result.text for result in results] == ["a", "b", "a", "a"]
    assert [result.is_shared for result in results] == [False, False, True, True]


def test_a_shared_call_goes_on_while_anybody_waits_and_ends_with_the_last():
    tool = CountingTool(script=[0.05, 30], limits=ToolLimits(is_single_flight=True))
    runtime = ToolRuntime(tools=[tool])

    async def run():
        first, second = (asyncio.create_task(runtime.call(call_of(tool, "a"), make_context())) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        result = await second
        third, fourth = (asyncio.create_task(runtime.call(call_of(tool, "a"), make_context())) for _ in range(2))
        await asyncio.sleep(0.01)
        third.cancel()
        fourth.cancel()
        await asyncio.gather(third, fourth, return_exceptions=True)
        await asyncio.sleep(0.01)
        return result

    assert asyncio.run(run()).text == "0.05"
    assert (tool.calls, tool.num_running) == (["a", "a"], 0)


def test_kept_answers_are_given_again_and_failures_are_not_kept():
    tool = CountingTool(script=["one", ToolError("bad"), "two"], limits=ToolLimits(cache_ttl_s=None))
    runtime = ToolRuntime(tools=[tool], cache=DictCache())
    assert isinstance(runtime.cache, ToolCache)
    found = [ask(runtime, tool, text)[0] for text in ("a", "a", "b", "b", "b")]
    assert [result.text for result in found] == ["one", "one", "Error: Tool(probe) failed: bad", "two", "two"]
    assert [result.is_cached for result in found] == [False, True, False, False, True]


@pytest.mark.parametrize(("ttl", "num_calls"), [(0.0, 2), (60.0, 1)], ids=["not-kept", "kept"])
def test_empty_answers_have_a_time_of_their_own(ttl, num_calls):
    tool = CountingTool(script=["", ""], limits=ToolLimits(cache_ttl_s=None, cache_empty_ttl_s=ttl))
    runtime = ToolRuntime(tools=[tool], cache=DictCache())
    assert [ask(runtime, tool, "a")[0].status for _ in range(2)] == [ToolStatus.EMPTY] * 2
    assert len(tool.calls) == num_calls


@pytest.mark.parametrize(("is_bound", "num_calls"), [(True, 2), (False, 1)], ids=["bound", "free"])
def test_questions_share_answers_unless_these_depend_on_the_question(is_bound, num_calls):
    tool = CountingTool(limits=ToolLimits(cache_ttl_s=None), is_question_bound=is_bound)
    runtime = ToolRuntime(tools=[tool], cache=DictCache())
    for question in (make_context().question, OTHER):
        ask(runtime, tool, "a", contexts=[make_context(question=question)])
    assert len(tool.calls) == num_calls


# Arguments ------------------------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "k": {"type": "integer", "minimum": 1}},
    "required": ["text"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"k": 1}, "'text' is a required property"),
        ({"text": 1}, "text: 1 is not of type 'string'"),
        ({"text": "a", "k": 0}, "k: 0 is less than the minimum"),
        ({"text": "a", "z": 0}, "'z' was unexpected"),
        ({"text": ["x" * 500]}, "..."),
    ],
    ids=["missing", "type", "range", "unknown", "long"],
)
def test_arguments_that_do_not_fit_the_schema_are_answered_with_the_reason(arguments, problem):
    class Tool(CountingTool):
        @property
        def spec(self):
            return ToolSpec(name="probe", parameters=SCHEMA)

    tool = Tool()
    call = ToolCall(tool="probe", text="", arguments=arguments)
    result = asyncio.run(ToolRuntime(tools=[tool]).call(call, make_context()))
    assert result.status is ToolStatus.MALFORMED
    assert problem in result.text
    assert len(result.text) < 250
    assert not tool.calls


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"type": "object", "properties": {"text": {"type": "nonsense"}}}, "must be a JSON schema"),
        ({"type": "object", "properties": {"query": {}}}, "with 'text' among its properties"),
        ({"type": "string"}, "must describe an object"),
    ],
    ids=["schema", "parameter", "object"],
)
def test_a_schema_that_cannot_be_used_is_refused_at_once(parameters, match):
    class Tool(CountingTool):
        @property
        def spec(self):
            return ToolSpec(name="probe", parameters=parameters)

    with pytest.raises(ValueError, match=match):
        ToolRuntime(tools=[Tool()])


def test_keys_differ_exactly_where_answers_may():
    spec, context = ToolSpec(name="probe"), make_context()
    key = call_key(spec, {"a": 1, "b": 2}, context)
    assert key == call_key(spec, {"b": 2, "a": 1}, make_context(path=("r", 7), question=OTHER))
    others = [
        call_key(ToolSpec(name="probe", version="2"), {"a": 1, "b": 2}, context),
        call_key(ToolSpec(name="other"), {"a": 1, "b": 2}, context),
        call_key(spec, {"a": 1}, context),
        call_key(spec, {"a": 1, "b": "2"}, context),
        call_key(ToolSpec(name="probe", is_question_bound=True), {"a": 1, "b": 2}, context),
    ]
    assert len({key, *others}) == 6


def test_keys_of_tools_bound_to_a_question_tell_questions_of_one_id_apart():
    spec = ToolSpec(name="probe", is_question_bound=True)
    same_id = [
        Question(question_id="train-0", messages=(Message(role="user", content="a"),), answers=()),
        Question(question_id="train-0", messages=(Message(role="user", content="b"),), answers=()),
        Question(question_id="train-0", messages=(), answers=(), documents={"a": "1"}),
        Question(question_id="train-0", messages=(), answers=(), documents={"a": "2"}),
    ]
    assert len({call_key(spec, {"a": 1}, make_context(question=each)) for each in same_id}) == 4


def test_keys_of_tools_with_a_state_hold_what_the_state_has_seen():
    spec = ToolSpec(name="probe", state=ToolState.REPLAYABLE)
    call = ToolCall(tool="probe", text="x = 1")

    def key(*statuses):
        history = [(call, ToolResult(text="t", status=status)) for status in statuses]
        return call_key(spec, {"text": "x"}, make_context(history))

    assert key() == key(ToolStatus.TIMEOUT) == key(ToolStatus.UNAVAILABLE)
    assert len({key(), key(ToolStatus.OK), key(ToolStatus.OK, ToolStatus.ERROR)}) == 3


def test_a_schema_that_refers_to_nothing_is_an_observation_and_nothing_is_fetched():
    class Tool(CountingTool):
        @property
        def spec(self):
            reference = {"$ref": "http://127.0.0.1:9/schema.json"}
            return ToolSpec(name="probe", parameters={"type": "object", "properties": {"text": reference}})

    (result,) = ask(ToolRuntime(tools=[Tool()]), Tool(), "x")
    assert result.status is ToolStatus.MALFORMED
    assert "refers to 'http://127.0.0.1:9/schema.json'" in result.text


def test_empty_answers_can_be_all_that_is_kept():
    tool = CountingTool(script=["", "", "a"], limits=ToolLimits(cache_empty_ttl_s=60.0))
    runtime = ToolRuntime(tools=[tool], cache=DictCache())
    assert [ask(runtime, tool, "x")[0].is_cached for _ in range(3)] == [False, True, True]
    assert len(tool.calls) == 1


@pytest.mark.parametrize("settings", [{"max_attempts": 0}, {"backoff_s": -1.0}], ids=str)
def test_a_retry_policy_without_meaning_is_refused(settings):
    with pytest.raises(ValueError, match="`max_attempts` must be at least 1 and `backoff_s` not negative"):
        RetryPolicy(**settings)


def test_the_names_of_errors_are_a_list():
    with pytest.raises(ValueError, match=r"must be a list of names, but got 'ToolError'\. Write \[ToolError\]"):
        RetryPolicy(errors="ToolError")


@pytest.mark.parametrize(
    "settings",
    [
        *({name: 0.0} for name in ("deadline_s", "calls_per_second", "breaker_reset_s", "breaker_window_s")),
        *({name: 0} for name in ("max_concurrent_calls", "max_result_chars")),
        *({name: -1} for name in ("max_queued_calls", "breaker_failures")),
        *({"breaker_share": share} for share in (0.0, 1.1)),
        *({name: -1.0} for name in ("cache_ttl_s", "cache_empty_ttl_s")),
        {"deadline_s": float("nan")},
    ],
    ids=str,
)
def test_limits_without_meaning_are_refused(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must"):
        ToolLimits(**settings)
