"""Arguments that a policy wrote: whatever they and the schema are, checking them ends, and elsewhere if it may take."""

import asyncio
import time
from collections.abc import Mapping
from types import MappingProxyType

import pytest

from aepo_lightning.contracts.tool import ToolCall, ToolSpec, ToolState, ToolStatus
from aepo_lightning.errors import ConfigError
from aepo_lightning.tools import ToolRuntime
from aepo_lightning.tools.runtime import arguments as arguments_module
from aepo_lightning.tools.runtime.schema_check import is_tame
from tests.support.tool_parts import CountingTool, Ledger, make_context


class SchemaTool(CountingTool):
    """Has the schema that a test wants."""

    schema: Mapping = MappingProxyType({})

    @property
    def spec(self):
        return ToolSpec(name="probe", parameters=self.schema, text_parameter=next(iter(self.schema["properties"])))

    async def __call__(self, _arguments, _context):
        return "reached"


def make(schema, **more):
    tool = SchemaTool()
    tool.schema = {"type": "object", "properties": {"x": schema}, **more}
    return tool


def ask(tool, value, context=None):
    call = ToolCall(tool="probe", text="", arguments={"x": value})
    return asyncio.run(ToolRuntime(tools=[tool]).call(call, context or make_context()))


DEEP = {}
for _ in range(500):
    DEEP = {"x": DEEP}
CIRCLE = []
CIRCLE.append(CIRCLE)
LOOP = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
TWINS = {"properties": {"x": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}}}


@pytest.mark.parametrize(
    ("schema", "more", "value"),
    [
        ({"multipleOf": 0.1}, {}, float("nan")),
        ({"multipleOf": 0.1}, {}, float("inf")),
        ({"multipleOf": 0.1}, {}, 10**400 + 1),
        ({"multipleOf": 1e-300}, {}, 1e300),
        ({"type": "number"}, {}, float("-inf")),
        ({"type": "integer"}, {}, 10**5000),
        ({"$ref": "#/$defs/a"}, LOOP, 1),
        ({"type": "object"}, {}, DEEP),
        ({"type": "array"}, {}, CIRCLE),
        ({"type": "object"}, {}, {1: 2}),
        ({"type": "string"}, {}, [0] * 200_000),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, {}, 1),
        ({"uniqueItems": True}, {}, [{"a": 1}, {"a": 1}]),
    ],
    ids=[
        *("nan", "infinity", "400-digits", "tiny", "plain-infinity", "5000-digits", "circle-of-references", "deep"),
        *("circle", "names", "long", "elsewhere", "twice"),
    ],
)
def test_whatever_fails_is_malformed(schema, more, value):
    result = ask(make(schema, **more), value)
    assert result.status is ToolStatus.MALFORMED
    assert len(result.text) < 400


@pytest.mark.parametrize(
    ("schema", "more", "value"),
    [
        ({"type": "string", "pattern": "^(a+)+$"}, {}, "a" * 40 + "b"),
        ({"propertyNames": {"pattern": "^(a|a)*$"}}, {}, {"a" * 40 + "b": 1}),
        ({"type": "array", "uniqueItems": True}, {}, [{"a": [number]} for number in range(20_000)]),
        ({}, TWINS, None),
    ],
    ids=["pattern", "names", "unique", "twins"],
)
def test_what_takes_for_ever_is_malformed_and_holds_nobody_up(schema, more, value, monkeypatch):
    monkeypatch.setattr(arguments_module, "_CHECK_S", 0.3)
    if value is None:
        value = "no object"
        for _ in range(40):
            value = {"x": value}
    tool = make(schema, **more)
    lags = []

    async def run():
        runtime = ToolRuntime(tools=[tool])
        call = ToolCall(tool="probe", text="", arguments={"x": value})
        await runtime.call(ToolCall(tool="probe", text="", arguments={"x": 1}), make_context())
        asked = asyncio.create_task(runtime.call(call, make_context()))
        while not asked.done():
            before = time.monotonic()
            await asyncio.sleep(0.01)
            lags.append(time.monotonic() - before)
        return asked.result()

    result = asyncio.run(run())
    assert result.status is ToolStatus.MALFORMED
    assert "cannot be checked within 0.3 s" in result.text
    assert max(lags) < 5.0  # here they would take minutes


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "integer", "maximum": 1.5e300}, 10**250),
        ({"type": "string", "pattern": "^[a-z]+$"}, "abc"),
        ({"type": "number", "multipleOf": 0.5}, 2.5),
        ({"type": "array", "uniqueItems": True}, [{"a": 1}, {"a": 2}]),
        ({"$ref": "#/$defs/tree"}, {"left": {"left": {}}}),
        ({"type": "array", "items": {"type": "integer"}}, list(range(20_000))),
    ],
    ids=["integer", "pattern", "multiple", "unique", "tree", "long"],
)
def test_what_fits_is_passed_on_however_it_is_checked(schema, value):
    tree = {"tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}}}
    assert ask(make(schema, **{"$defs": tree}), value).text == "reached"


@pytest.mark.parametrize(
    ("schema", "tame"),
    [
        ({"type": "string", "enum": ["a", "b"], "description": "Any."}, True),
        ({"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "number", "minimum": 0}}]}, True),
        ({"type": "object", "additionalProperties": {"type": "string"}}, True),
        ({"type": "string", "pattern": "a"}, False),
        ({"type": "array", "items": {"uniqueItems": True}}, False),
        ({"anyOf": [{"$ref": "#"}]}, False),
        ({"patternProperties": {"(a+)+": {}}}, False),
        ({"unheard_of": 1}, False),
    ],
)
def test_only_what_is_known_to_be_quick_is_checked_here(schema, tame):
    assert is_tame(schema) is tame


@pytest.mark.parametrize(
    "pattern", ["[", "a{99999999999999}", "(?u)(?a)", "(" * 2000], ids=["open", "repeats", "flags", "deep"]
)
def test_a_pattern_that_is_none_is_refused_at_once(pattern):
    with pytest.raises(ConfigError, match="`parameters` of 'probe' must be a JSON schema, but: "):
        ToolRuntime(tools=[make({"type": "string", "pattern": pattern})])


def test_a_recorded_call_is_checked_again_in_the_same_way(monkeypatch):
    """A continued run replays the calls of a state; one whose check never ends must not stop it."""
    monkeypatch.setattr(arguments_module, "_CHECK_S", 0.3)

    class PatternLedger(Ledger):
        @property
        def spec(self):
            schema = {"type": "object", "properties": {"text": {"type": "string", "pattern": "^(a+)+$"}}}
            return ToolSpec(name=self.name, state=ToolState.REPLAYABLE, parameters=schema)

    tool = PatternLedger()
    runtime = ToolRuntime(tools=[tool])
    recorded = [ToolCall(tool="ledger", text=text) for text in ("a", "a" * 40 + "b")]
    (ok,) = [asyncio.run(ToolRuntime(tools=[PatternLedger()]).call(recorded[0], make_context()))]
    context = make_context(history=[(each, ok) for each in recorded])
    result = asyncio.run(runtime.call(ToolCall(tool="ledger", text="aa"), context))
    assert result.text == "a,aa"
