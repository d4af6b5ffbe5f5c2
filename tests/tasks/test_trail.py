import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest

from aepo_lightning.contracts.question import DemonstrationSource, SegmentSource, Task
from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.tokenizers import build_word_tokenizer
from aepo_lightning.tasks import ArithmeticTask
from aepo_lightning.tasks.trail import TrailTask, vocabulary
from tests.support.paths import ROOT

VARIANTS = {
    "default": TrailTask(),
    "labelled": TrailTask(is_labelled=True),
    "shuffled": TrailTask(is_labelled=True, shuffle_exits=True, num_exits=4, num_places=60),
    "one_step": TrailTask(num_steps=1, num_places=2, num_exits=1),
}
variants = pytest.mark.parametrize("task", list(VARIANTS.values()), ids=list(VARIANTS))


def exits_of(question, place, task):
    """Read a document as a policy would: exit words by rule word."""
    words = question.documents[place].split()
    if task.is_labelled:
        return dict(zip(words[0::2], words[1::2], strict=True))
    return {f"c{rule}": place for rule, place in enumerate(words)}


def chance(question, task):
    """Probability that a uniformly random exit at every step ends at the answer; by dynamic programming."""
    share = {question.metadata["start"]: 1.0}
    for _ in range(task.num_steps):
        after = {}
        for place, mass in share.items():
            for exit_ in exits_of(question, place, task).values():
                after[exit_] = after.get(exit_, 0.0) + mass / task.num_exits
        share = after
    return share.get(question.answers[0], 0.0)


def ends_right(demonstration):
    return demonstration.turns[-1].text == f"<answer> \\boxed{{ {demonstration.question.answers[0]} }} </answer>"


@variants
def test_is_a_task_and_a_demonstration_source(task):
    assert isinstance(task, Task)
    assert isinstance(task, DemonstrationSource)
    assert task.num_questions("train") is None
    assert task.num_questions("val") == 256


@variants
def test_following_the_rule_through_the_documents_reaches_the_answer(task):
    for index in range(50):
        question = task.question("train", index)
        find, place, rule = question.messages[0].content.split()
        assert find == "find"
        for _ in range(task.num_steps):
            place = exits_of(question, place, task)[rule]
        assert question.answers == (place,)


def test_questions_are_the_ones_that_were_first_released():
    # frozen: a change here changes every published run
    question = TrailTask().question("train", 3)
    assert question.question_id == "trail-train-3"
    assert question.messages[0].content == "find e9 c0"
    # exits of c0: e9 -> e15 -> e7 -> e15 -> e7
    assert [question.documents[place] for place in ("e9", "e15", "e7")] == ["e15 e11 e1", "e7 e0 e8", "e15 e11 e12"]
    assert question.answers == ("e7",)


def test_documents_cover_every_place_with_exits_in_the_layout_asked_for():
    plain = TrailTask().question("val", 0)
    labelled = TrailTask(is_labelled=True).question("val", 0)
    shuffled = TrailTask(is_labelled=True, shuffle_exits=True).question("val", 0)
    assert set(plain.documents) == {f"e{place}" for place in range(16)}
    for place, text in plain.documents.items():
        first, second, third = text.split()
        assert labelled.documents[place] == f"c0 {first} c1 {second} c2 {third}"
        assert sorted(shuffled.documents[place].split()) == sorted(labelled.documents[place].split())
    assert shuffled.answers == labelled.answers == plain.answers
    assert shuffled.documents != labelled.documents


@variants
def test_same_index_gives_the_same_question_and_demonstration(task):
    again = replace(task)
    for split in ("train", "val"):
        assert again.question(split, 7) == task.question(split, 7)
    assert again.demonstration(7) == task.demonstration(7)


def test_questions_do_not_depend_on_the_process():
    program = "from aepo_lightning.tasks.trail import TrailTask as T; import sys; "
    program += "sys.stdout.write(repr(T().question('val', 5)) + repr(T().demonstration(5)))"
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PYTHONHASHSEED": "123", "PYTHONPATH": str(ROOT)},
    )
    assert run.stdout == repr(TrailTask().question("val", 5)) + repr(TrailTask().demonstration(5))


def test_seed_changes_training_and_demonstrations_but_not_validation():
    first, second = TrailTask(seed=0), TrailTask(seed=1)
    assert first.question("train", 0).documents != second.question("train", 0).documents
    assert first.demonstration(0).question.documents != second.demonstration(0).question.documents
    assert first.question("val", 0) == second.question("val", 0)
    assert first.question("val", 0).documents != TrailTask(val_seed=1).question("val", 0).documents


def test_train_val_and_demonstrations_never_share_a_world_or_an_id():
    task = TrailTask()
    questions = [task.question("train", index) for index in range(256)]
    questions += [task.question("val", index) for index in range(256)]
    questions += [task.demonstration(index).question for index in range(256)]
    assert len({tuple(question.documents.values()) for question in questions}) == 3 * 256
    assert len({question.question_id for question in questions}) == 3 * 256


def test_quality_does_not_change_which_questions_are_demonstrated():
    good, bad = TrailTask(demonstration_quality=1.0), TrailTask(demonstration_quality=0.0)
    assert good.demonstration(4).question == bad.demonstration(4).question


@variants
def test_demonstrations_alternate_calls_of_the_policy_and_documents(task):
    for index in range(30):
        demonstration = task.demonstration(index)
        turns = demonstration.turns
        assert [turn.source for turn in turns[0::2]] == [SegmentSource.POLICY] * (task.num_steps + 1)
        assert [turn.source for turn in turns[1::2]] == [SegmentSource.TOOL] * task.num_steps
        visited = [re.search(r"\be\d+", turn.text).group() for turn in turns[0::2]]
        calls = [f"<search> {place} </search>" for place in visited[:-1]]
        assert visited[0] == demonstration.question.metadata["start"]
        assert [turn.text for turn in turns[:-1:2]] == [f"<think> go </think> {calls[0]}", *calls[1:]]
        assert [turn.text for turn in turns[1::2]] == [demonstration.question.documents[at] for at in visited[:-1]]
        assert turns[-1].text == f"<answer> \\boxed{{ {visited[-1]} }} </answer>"
        for place, following in pairwise(visited):
            assert following in exits_of(demonstration.question, place, task).values()


def test_perfect_demonstrations_end_at_the_answer():
    task = TrailTask(demonstration_quality=1.0)
    assert all(ends_right(task.demonstration(index)) for index in range(200))


def test_aimless_demonstrations_end_at_the_answer_by_chance():
    task = TrailTask(demonstration_quality=0.0)
    demonstrations = [task.demonstration(index) for index in range(1000)]
    expected = sum(chance(demonstration.question, task) for demonstration in demonstrations)
    # sum of independent Bernoullis: standard deviation below sqrt(expected), about 10; four of them
    assert sum(map(ends_right, demonstrations)) == pytest.approx(expected, abs=4 * expected**0.5)


def test_quality_is_the_probability_of_following_the_rule_on_purpose():
    # two exits, one step, quality 0.6: right on purpose 0.6 + right by chance 0.4 / 2 = 0.8 (exits that differ)
    task = TrailTask(num_exits=2, num_steps=1, num_places=1000, demonstration_quality=0.6)
    demonstrations = [task.demonstration(index) for index in range(1000)]
    # standard deviation sqrt(0.8 * 0.2 / 1000) = 0.0126; four of them
    assert sum(map(ends_right, demonstrations)) / 1000 == pytest.approx(0.8, abs=0.05)


@variants
def test_vocabulary_is_closed(task):
    tokenizer = build_word_tokenizer(task.words)
    for index in range(30):
        demonstration = task.demonstration(index)
        question = task.question("train", index)
        texts = [turn.text for turn in demonstration.turns] + [message.content for message in question.messages]
        texts += [*question.documents, *question.documents.values(), *question.answers, "<result> </result>"]
        for text in texts:
            ids = tokenizer.encode(text)
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_default_vocabulary_is_small():
    assert len(TrailTask().words) == 31
    assert len(set(TrailTask().words)) == 31


def test_rule_words_occur_nowhere_but_in_the_prompt_without_labels():
    demonstration = TrailTask().demonstration(0)
    texts = [*demonstration.question.documents.values(), *(turn.text for turn in demonstration.turns)]
    assert not any(word.startswith("c") for text in texts for word in text.split())


@pytest.mark.parametrize("split, index", [("val", 256), ("val", -1), ("train", -1)], ids=str)
def test_positions_outside_a_split_are_refused(split, index):
    with pytest.raises(IndexError, match="`index` must be a position"):
        TrailTask().question(split, index)


def test_demonstrations_have_no_negative_positions():
    with pytest.raises(IndexError, match="`index` must be a position"):
        TrailTask().demonstration(-1)


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"num_places": 1}, "num_places"),
        ({"num_exits": 0}, "num_exits"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_val_questions": -1}, "num_val_questions"),
        ({"demonstration_quality": 1.5}, "demonstration_quality"),
        ({"demonstration_quality": float("nan")}, "demonstration_quality"),
        ({"shuffle_exits": True}, "shuffle_exits"),
    ],
    ids=lambda value: str(value),
)
def test_settings_without_meaning_are_refused_by_name(settings, named):
    with pytest.raises(ConfigError, match=f"`{named}` must be"):
        TrailTask(**settings)


def test_the_first_demonstrations_are_flawless_and_the_others_are_not():
    task = TrailTask(demonstration_quality=0.0, num_flawless_demonstrations=40)

    def is_right(index):
        shown = task.demonstration(index)
        return f"\\boxed{{ {shown.question.answers[0]} }}" in shown.turns[-1].text

    assert all(is_right(index) for index in range(40))
    # By chance a step is right with 1/3: all 40 right would have probability below 1e-60.
    assert not all(is_right(index) for index in range(40, 80))


def test_a_task_without_a_closed_vocabulary_gets_no_word_tokenizer():
    with pytest.raises(ConfigError, match=r"must have a tokenizer for any text to go with ArithmeticTask.*model=hf"):
        vocabulary(ArithmeticTask())
