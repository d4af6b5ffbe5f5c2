"""The cave: what stands behind its passages, what its stones are worth, and what its demonstrations know."""

from collections import Counter
from dataclasses import replace

import pytest

from aepo_lightning.contracts.question import ClosedVocabulary, DemonstrationSource, SegmentSource, Task
from aepo_lightning.errors import ConfigError
from aepo_lightning.rewards.typed import typed_f1
from aepo_lightning.tasks.cave import CaveTask
from aepo_lightning.tasks.trail import vocabulary

VARIANTS = {
    "default": CaveTask(),
    "dusty": CaveTask(num_chambers=4, dust=(8, 3, 1)),
    "foggy": CaveTask(num_chambers=4, fog_share=0.5, is_plain_at_signs=True, boldness=0.9),
    "alone": CaveTask(num_chambers=1, num_stones=2),
}
variants = pytest.mark.parametrize("task", list(VARIANTS.values()), ids=list(VARIANTS))


def walk(question, passage_of):
    """Search as a policy would, and return the stones found; None at the end is a pit."""
    found, query = [], question.messages[0].content.removeprefix("find ")
    while query in question.documents:
        text = question.documents[query]
        if text == "pit":
            return [*found, None]
        stone, sign = text.split()
        found.append(stone)
        query = f"{stone} p{passage_of(sign)}"
    return found


def right(task):
    return lambda sign: 0 if sign == "fog" else int(sign[1:]) % task.num_passages


def lines_of(demonstration):
    """(the words of the result before, the words of the line) of every turn of the policy."""
    before = demonstration.question.messages[0].content.split()
    for turn in demonstration.turns:
        words = turn.text.split()
        if turn.source is SegmentSource.TOOL:
            before = words
        else:
            yield before, words[1 : words.index("</think>")], words[words.index("</think>") + 1 :]


@variants
def test_is_a_task_with_a_closed_vocabulary_and_demonstrations(task):
    assert isinstance(task, Task)
    assert isinstance(task, DemonstrationSource)
    assert isinstance(task, ClosedVocabulary)
    known = set(vocabulary(task))
    assert len(known) == len(task.words)
    for index in range(30):
        shown = task.demonstration(index)
        texts = [*(turn.text for turn in shown.turns), *shown.question.documents.values()]
        assert {word for text in texts for word in text.split()} <= known


@variants
def test_the_passages_of_the_signs_lead_to_the_last_stone_and_others_into_a_pit(task):
    for index in range(30):
        question = task.question("train", index)
        stones = walk(question, right(task))
        assert len(stones) == task.num_chambers
        assert stones[-1] == question.answers[0]
        if task.num_chambers > 1:
            assert walk(question, lambda sign: (right(task)(sign) + 1) % task.num_passages)[1:] == [None]


def test_a_stone_is_worth_less_the_more_dust_lies_beside_it():
    task = VARIANTS["dusty"]
    question = task.question("val", 0)
    worth = [max(typed_f1(stone, answer) for answer in question.answers) for stone in walk(question, right(task))]
    assert worth == pytest.approx([2 / 10, 2 / 5, 2 / 3, 1.0])  # 2 / (2 + dust)
    bare = CaveTask().question("val", 0)
    assert [max(typed_f1(stone, answer) for answer in bare.answers) for stone in walk(bare, right(CaveTask()))] == [
        0,
        0,
        1,
    ]


@variants
def test_the_same_index_gives_the_same_question_and_streams_never_meet(task):
    again = replace(task)
    ids = set()
    for index in range(5):
        asked = [task.question("train", index), task.question("val", index), task.demonstration(index).question]
        assert asked[:2] == [again.question("train", index), again.question("val", index)]
        assert task.demonstration(index) == again.demonstration(index)
        ids |= {question.question_id for question in asked}
    assert len(ids) == 15
    other = replace(task, seed=1)
    assert other.question("val", 3) == task.question("val", 3)
    assert [other.question("train", i) for i in range(9)] != [task.question("train", i) for i in range(9)]


def test_demonstrations_go_on_and_choose_as_often_as_they_are_told():
    task = CaveTask(boldness=0.7, knowledge=0.4, num_chambers=2)
    counts = Counter()
    for index in range(300):
        shown = task.demonstration(index)
        calls = sum(turn.source is SegmentSource.TOOL for turn in shown.turns)
        counts["bold"] += calls == 2
        counts["right"] += calls == 2 and shown.turns[-2].text != "pit"
    assert counts["bold"] / 300 == pytest.approx(0.7, abs=0.08)
    assert counts["right"] / counts["bold"] == pytest.approx(0.4 + 0.6 / 3, abs=0.1)


def test_a_demonstration_answers_with_what_it_found_last():
    for index in range(50):
        *_, (before, line, rest) = lines_of(CaveTask().demonstration(index))
        assert line[0] == before[0]
        assert rest == ["<answer>", "\\boxed{", before[0], "}", "</answer>"]


def test_lines_are_drawn_in_fog_and_always_the_same_at_signs():
    task, drawn, plain = VARIANTS["foggy"], Counter(), set()
    for index in range(60):
        for before, line, _ in lines_of(task.demonstration(index)):
            if before[-1] == "fog":
                drawn.update(line[1:])
            elif before[-1].startswith("k"):
                plain.add(tuple(line[1:]))
    assert plain == {("w0", "w1", "w2", "w3", "w4", "w5", "w0", "w1")}
    assert set(drawn) == {f"w{word}" for word in range(6)}
    assert max(drawn.values()) < 1.5 * min(drawn.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_chambers": 0}, "`num_chambers` must be at least 1, but got 0"),
        ({"num_stones": 3}, "`num_stones` must be at least 4, but got 3"),
        ({"fog_share": 1.5}, r"`fog_share` must be in \[0, 1\], but got 1.5"),
        ({"boldness": -1.0}, r"`boldness` must be in \[0, 1\], but got -1"),
        ({"dust": (1, 1, 1)}, r"`dust` must hold at most 2 numbers, .* but got \[1, 1, 1\]"),
        ({"dust": (0,)}, r"`dust` must hold .* but got \[0\]"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        CaveTask(**settings)


def test_a_question_beyond_the_end_is_an_index_error():
    with pytest.raises(IndexError):
        CaveTask(num_val_questions=3).question("val", 3)
