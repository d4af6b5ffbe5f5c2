"""What names a rollout's settings: every one that can change a tree, and nothing that another process has not."""

import functools
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from aepo_lightning.chat_formats.tags import TagFormat
from aepo_lightning.rewards import FormatTerm, PaperReward, RewardSum, as_reward
from aepo_lightning.rollout.description import describe, question_digest
from aepo_lightning.rollout.steps import signature
from aepo_lightning.tools import DocumentSearch, ToolRuntime, tool
from tests.support.builders import ScriptedEngine, calls_then_answer, make_parts, make_question

ENGINE = ScriptedEngine(calls_then_answer(1))


def parts(**changes):
    return make_parts(ENGINE, **changes)


@tool
def lookup(place: str) -> str:
    """Look a place up."""
    return place


@tool
def lookup_in_capitals(place: str) -> str:
    """Look a place up."""
    return place.upper()


def runtime(*tools, **settings):
    return ToolRuntime(tools=tools or (DocumentSearch(),), **settings)


def rewarding(factor):
    return lambda sample: factor * len(sample.response_text)


class Judge:
    """A reward that keeps its settings as classes do."""

    def __init__(self, model, threshold=0.5):
        self.model, self._threshold, self.num_calls = model, threshold, 0
        self._client = object()

    async def __call__(self, sample):
        raise NotImplementedError


CHANGES = {
    "deadline": {"tools": runtime(timeout_s=5.0)},
    "cut": {"tools": runtime(max_result_chars=100)},
    "queue": {"tools": runtime(max_queued_calls=1)},
    "slots": {"tools": runtime(max_concurrent_calls=1)},
    "tool": {"tools": runtime(DocumentSearch(max_results=3))},
    "corpus": {"tools": runtime(DocumentSearch(documents={"a": "b"}))},
    "another corpus": {"tools": runtime(DocumentSearch(documents={"a": "c"}))},
    "limits": {"tools": runtime(DocumentSearch(limits={"deadline_s": 3.0}))},
    "retry": {"tools": runtime(DocumentSearch(limits={"retry": {"max_attempts": 3}}))},
    "function": {"tools": runtime(lookup)},
    "another function": {"tools": runtime(replace(lookup_in_capitals, spec=lookup.spec))},
    "system prompt": {"chat_format": TagFormat(ENGINE.tokenizer, ("search",), system_prompt="tools")},
    "template": {"chat_format": TagFormat(ENGINE.tokenizer, ("search",), result_template="<result> {text} </result>")},
    "reward": {"reward": PaperReward(multi_tool_bonus=0.2)},
    "function reward": {"reward": as_reward(rewarding(1.0))},
    "another function reward": {"reward": as_reward(rewarding(2.0))},
    "partial reward": {"reward": as_reward(functools.partial(rewarding(1.0), 3))},
    "judge": {"reward": Judge("a")},
    "another judge": {"reward": Judge("b")},
    "stricter judge": {"reward": Judge("a", 0.9)},
    "temperature": {"temperature": 0.5},
    "context": {},
}


def signature_of(name):
    made = parts(**CHANGES[name])
    return signature(
        replace(made, engine=ScriptedEngine(calls_then_answer(1), max_model_len=99)) if name == "context" else made
    )


def test_no_two_settings_have_one_name():
    names = {name: signature_of(name) for name in CHANGES}
    assert len({signature(parts()), *names.values()}) == len(names) + 1, names


def test_the_same_settings_have_one_name():
    assert signature(parts()) == signature(parts())
    judge = Judge("a")
    judge.num_calls = 7
    assert signature(parts(reward=judge)) == signature(parts(reward=Judge("a")))
    assert signature(parts(reward=as_reward(rewarding(1.0)))) == signature(parts(reward=as_reward(rewarding(1.0))))


def test_a_sum_of_terms_is_named_by_terms_and_weights_and_not_by_what_they_may_cost():
    terms = {"form": FormatTerm(), "own": rewarding(1.0)}
    total = RewardSum(terms=terms)
    same = [total, RewardSum(terms=dict(reversed(terms.items()))), RewardSum(terms=terms, limits={"own": {}})]
    assert len({signature(parts(reward=as_reward(each, "thread", 3.0))) for each in same}) == 1
    others = [
        RewardSum(terms=terms, weights={"own": 0.5}),
        RewardSum(terms=terms | {"own": rewarding(2.0)}),
        RewardSum(terms=terms | {"form": FormatTerm(penalty=-0.5)}),
        RewardSum(terms=terms, clip=[0.0, 1.0]),
        RewardSum(terms=terms, only_with={"own": "form"}),
    ]
    assert len({signature(parts(reward=each)) for each in (total, *others)}) == len(others) + 1


@pytest.mark.slow
def test_another_process_gives_the_same_name():
    code = "from tests.rollout.test_description import *; print([signature_of(name) for name in CHANGES])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([signature_of(name) for name in CHANGES])


@dataclass
class Nested:
    inner: object
    state: list = field(default_factory=list, init=False)


class Slotted:
    __slots__ = ("name",)

    def __init__(self, name):
        self.name = name


def cycle():
    one = Nested(None)
    one.inner = {"one": [one]}
    return one


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Nested(1), Nested(1.0)),
        (Nested({"a": 1}), Nested({"a": 2})),
        (Nested({1, 2}), Nested({1, 3})),
        (Nested(re.compile("a")), Nested(re.compile("b"))),
        (Nested(Path("a")), Nested(Path("b"))),
        (Nested(Slotted("a")), Nested(Slotted("b"))),
        (Nested(int), Nested(float)),
        (Nested("1"), Nested(1)),
        (Nested(["1, 2"]), Nested(["1", "2"])),
        (Nested(len), Nested(max)),
        (Nested(list(range(5000))), Nested(list(range(5001)))),
    ],
    ids=["kind", "value", "set", "pattern", "path", "slots", "class", "text", "nesting", "function", "length"],
)
def test_values_that_differ_are_described_differently(one, other):
    assert describe(one) != describe(other)


def test_state_and_addresses_are_in_no_description():
    one, other = Nested(Judge("a")), Nested(Judge("a"))
    one.state.append(1)
    assert describe(one) == describe(other)
    assert "0x" not in describe([one, cycle(), object(), Judge("a")._client, print, Nested.__init__])
    assert describe(cycle()) == describe(cycle())
    assert describe({"b": 1, "a": {3, 1}}) == describe({"a": {1, 3}, "b": 1})


def test_a_question_is_named_by_all_that_is_asked():
    chat_format = parts().chat_format
    base = make_question()
    others = [
        replace(base, answers=("e3",)),
        replace(base, documents={}),
        replace(base, metadata={"a": 1}),
        make_question(text="go e0"),
    ]
    told = TagFormat(ENGINE.tokenizer, ("search",), system_prompt="tools")
    names = {question_digest(each, chat_format) for each in (base, *others)} | {question_digest(base, told)}
    assert len(names) == 6
    assert question_digest(replace(base, question_id="other"), chat_format) in names
