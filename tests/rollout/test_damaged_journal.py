"""Damage in the files of a run that goes on: what is sound is kept, the rest made again, and nothing wrong trained."""

import json
import logging
from dataclasses import replace

import pytest

from aepo_lightning.contracts.question import Message
from aepo_lightning.contracts.tool import ToolResult
from aepo_lightning.errors import DataError, EngineError
from aepo_lightning.rollout import RolloutJournal, RolloutSampler, tree_to_dict
from aepo_lightning.rollout.checked_lines import Line, read_lines, to_text
from tests.rollout.test_record import WEIGHTS, Mortal, pausing
from tests.support.builders import make_parts, make_question, random_script
from tests.support.slow import first_quick, quick


class Steady:
    """Answers the same call always in the same way."""

    tool_names = ("search",)

    async def call(self, call, _):
        return ToolResult(text=f"go {call.text}"[:10])


NUM_REQUESTS, LARGEST = 23, 7  # of all questions, and of one
QUESTIONS = [make_question(f"q{index}") for index in range(4)]


def rollout(folder, engine=None, questions=QUESTIONS, **changes):
    """Grow the trees of some questions, in a journal. Chains without branches need no other's decision."""
    engine = engine or Mortal(random_script(), pauses=pausing)
    sampler = RolloutSampler(make_parts(engine, tools=Steady(), **changes), 4, RolloutJournal(folder))
    return sampler.rollout(questions, 7, "train", weights=WEIGHTS), engine


def cut_off(folder, dies_at=15):
    """Leave what a run does that dies in the middle of a rollout: finished trees, and steps of the others."""
    with pytest.raises(EngineError, match="died"):
        rollout(folder, Mortal(random_script(), dies_at=dies_at, pauses=pausing))
    return RolloutJournal(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of a run that nothing befell."""
    folder = tmp_path_factory.mktemp("whole")
    rollout(folder)
    return RolloutJournal(folder).path("train").read_text()


@pytest.mark.parametrize("dies_at", first_quick([8, 1, 22]))
def test_a_run_that_goes_on_leaves_the_same_file_as_one_that_was_never_stopped(tmp_path, whole, dies_at):
    journal = cut_off(tmp_path, dies_at)
    rollout(tmp_path)
    assert journal.path("train").read_text() == whole
    assert [path.name for path in tmp_path.glob("*.jsonl*")] == ["train.jsonl"]


def test_trees_stand_in_the_order_of_their_questions_whatever_order_they_were_finished_in(tmp_path, whole):
    for index in (2, 0, 3):
        rollout(tmp_path, questions=[QUESTIONS[index]])
    rollout(tmp_path)
    assert RolloutJournal(tmp_path).path("train").read_text() == whole


def other_digit(content, after):
    """The same line with another digit after a word; still JSON, of the same length."""
    place = content.index(after) + len(after)
    while not content[place : place + 1].isdigit():
        place += 1
    return content[:place] + bytes([b"1"[0] if content[place] != b"1"[0] else b"2"[0]]) + content[place + 1 :]


STEP_DAMAGES = {
    "token": lambda line: other_digit(line, b'"token_ids":['),
    "turn": lambda line: other_digit(line, b'"turn":'),
    "number": lambda line: other_digit(line, b'"number":'),
    "checksum": lambda line: other_digit(line, b'"checksum":"'),
    "cut": lambda line: line[:30],
    "bytes": lambda line: b"\xff" + line,
    "blank": lambda _: b"",
    "gone": lambda _: None,
    "without checksum": lambda line: json.dumps(json.loads(line)).encode(),
}


@pytest.mark.parametrize("place", first_quick([0.4, 0.0, 0.9]))
@pytest.mark.parametrize("damage", STEP_DAMAGES.values(), ids=STEP_DAMAGES)
def test_damaged_steps_are_taken_again_and_sound_ones_are_not(tmp_path, whole, caplog, damage, place):
    path = cut_off(tmp_path).steps_path("train")
    lines = path.read_bytes().splitlines()
    steps = [index for index, line in enumerate(lines) if b"token_ids" in line]
    index = steps[int(place * len(steps))]
    changed = damage(lines[index])
    lines[index : index + 1] = [] if changed is None else [changed]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    with caplog.at_level(logging.INFO, "aepo_lightning.rollout.journal"):
        _, engine = rollout(tmp_path)
    assert RolloutJournal(tmp_path).path("train").read_text() == whole
    assert changed is None or "is kept as train.steps.jsonl.damaged-1" in caplog.text
    # Other questions' steps are taken over, and those before it: what was not done is done, and a question at most.
    num_missing = NUM_REQUESTS - len(steps)
    assert num_missing < len(engine.requests) <= num_missing + LARGEST


def test_steps_that_say_nothing_to_this_version_are_taken_again(tmp_path, whole):
    path = cut_off(tmp_path).steps_path("train")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(
        "".join([*lines, *(to_text({"question": f"q{i}", "number": n, "x": 1}) for i in range(4) for n in range(9))])
    )
    rollout(tmp_path)
    assert RolloutJournal(tmp_path).path("train").read_text() == whole


@pytest.mark.parametrize("damage", ["header", "everything"])
def test_steps_without_a_header_are_all_taken_again(tmp_path, whole, damage):
    path = cut_off(tmp_path).steps_path("train")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"x" + b"".join(lines) if damage == "header" else b"\0" * 512 + b"\n")
    rollout(tmp_path)
    assert RolloutJournal(tmp_path).path("train").read_text() == whole
    assert (tmp_path / "train.steps.jsonl.damaged-1").exists()


TREE_DAMAGES = {
    "token": lambda line: other_digit(line, b'"token_ids":['),
    "log-prob": lambda line: other_digit(line, b'"logprobs":[-'),
    "reward": lambda line: other_digit(line, b'"reward":{"reward":'),
    "cut": lambda line: line[:200],
    "re-written": lambda line: json.dumps(json.loads(line)).encode(),
}


@pytest.mark.parametrize("damage", TREE_DAMAGES.values(), ids=TREE_DAMAGES)
def test_a_damaged_tree_is_grown_again(tmp_path, whole, damage, caplog):
    rollout(tmp_path)
    path = RolloutJournal(tmp_path).path("train")
    lines = path.read_bytes().splitlines()
    lines[1] = damage(lines[1])
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"train\.jsonl, line 2: "):
        list(RolloutJournal(tmp_path).read("train"))
    assert len(RolloutJournal(tmp_path).read_sound("train")) == 3
    trees, engine = rollout(tmp_path)
    assert path.read_text() == whole
    assert (tmp_path / "train.jsonl.damaged-1").read_bytes() == before
    assert "3 of 4 lines are taken over" in caplog.text
    # Of one question, the only one whose chains ask the engine.
    assert len(engine.requests) == sum(segment.source == "policy" for segment in trees[1].segments)


def test_a_line_of_an_earlier_version_is_read_but_not_taken_over(tmp_path):
    trees, _ = rollout(tmp_path)
    path = RolloutJournal(tmp_path).path("train")
    path.write_text("".join(json.dumps(tree_to_dict(tree)) + "\n" for tree in trees))
    assert len(list(RolloutJournal(tmp_path).read("train"))) == 4
    _, engine = rollout(tmp_path)
    assert engine.requests


OTHERS = {
    "answers": {"answers": ("e3",)},
    "text": {"messages": (Message(role="user", content="find e5"),)},
    "system": {"messages": (Message(role="system", content="go"), Message(role="user", content="find e0"))},
    "documents": {"documents": {"e0": "go e1"}},
    "metadata": {"metadata": {"level": 2}},
}


@pytest.mark.parametrize("change", quick(OTHERS, "answers", "system"))
def test_what_was_made_of_another_question_under_the_same_id_is_not_taken_over(tmp_path, change):
    cut_off(tmp_path)
    changed = [replace(QUESTIONS[0], **change), *QUESTIONS[1:]]
    trees, _ = rollout(tmp_path, questions=changed)
    other = tmp_path / "other"
    fresh, _ = rollout(other, questions=changed)
    assert [tree_to_dict(tree) for tree in trees] == [tree_to_dict(tree) for tree in fresh]
    assert RolloutJournal(tmp_path).path("train").read_text() == RolloutJournal(other).path("train").read_text()


def test_trees_of_other_questions_stay_in_the_file(tmp_path):
    rollout(tmp_path)
    _, engine = rollout(tmp_path, questions=[*QUESTIONS[2:], make_question("q9")])
    kept = [tree.question.question_id for tree in RolloutJournal(tmp_path).read("train")]
    assert kept == ["q2", "q3", "q9", "q0", "q1"]
    assert len(list(tmp_path.glob("*.jsonl*"))) == 1
    assert engine.requests


@pytest.mark.parametrize(
    "plain", [{"a": 1}, {"text": "\u2028 \ud800 \x1c", "n": [1.5, None]}, {"checksum": "x"}], ids=str
)
def test_a_line_goes_round(tmp_path, plain):
    path = tmp_path / "lines"
    path.write_text(to_text(plain) * 2 + to_text(plain)[:-1])
    assert [line.load() for line in read_lines(path)] == [plain, plain]
    assert json.loads(to_text(plain)).keys() == plain.keys() | {"checksum"}


def test_a_line_that_is_nested_too_deeply_is_damaged():
    with pytest.raises(DataError):
        Line(number=1, content=b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}").load(needs_checksum=False)


def test_every_bit_of_a_line_counts():
    content = to_text({"token_ids": [1, 22], "reward": 0.5}).encode()[:-1]
    for index in range(len(content)):
        for bit in (1, 4, 32):
            spoilt = content[:index] + bytes([content[index] ^ bit]) + content[index + 1 :]
            with pytest.raises(DataError):
                Line(number=1, content=spoilt).load()
