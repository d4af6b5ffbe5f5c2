"""What is looked for in all questions before the first rollout: golds that nobody can earn, too long prompts."""

import json
import logging

import pytest

from aepo_lightning.chat_formats import TagFormat
from aepo_lightning.contracts.question import Message
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.policy.tokenizers import build_byte_tokenizer
from aepo_lightning.rewards import PaperReward
from aepo_lightning.tasks import JsonlQuestions, ListedQuestions, TrailTask
from aepo_lightning.training.question_checks import announce, check_golds, check_lengths


def questions(tmp_path, *answers, **settings):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{n}", "answer": a}) + "\n" for n, a in enumerate(answers)))
    return JsonlQuestions(path, **settings)


@pytest.fixture(scope="module")
def letters():
    """A chat format whose tokens are characters; what a prompt has beside its messages is the same for all."""
    return TagFormat(build_byte_tokenizer(), ("search",))


def test_golds_that_the_reward_cannot_pay_are_refused_with_file_and_line(tmp_path):
    task = questions(tmp_path, "fine", "open {", ["fine", "<answer>"])
    with pytest.raises(DataError) as caught:
        check_golds(task, PaperReward())
    first, second = str(caught.value).splitlines()
    assert f"{tmp_path}/a.jsonl, line 2: an answer must earn the full reward, but got 'open {{': a response" in first
    assert "set `on_bad_gold` of the task to drop or keep" in first
    assert "line 3: an answer must earn the full reward, but got '<answer>'" in second


def test_a_long_list_of_bad_golds_is_cut(tmp_path):
    with pytest.raises(DataError, match=r"line 5: (.*)\n\(4 more\)$"):
        check_golds(questions(tmp_path, *["{"] * 9), PaperReward())


@pytest.mark.parametrize("answer", [5.0, 3.5, "A", "+", "-5", "1/2", "the"])
def test_numbers_choices_and_signs_are_golds_that_can_be_earned(tmp_path, answer):
    check_golds(questions(tmp_path, answer), PaperReward())


def test_bad_golds_are_dropped_or_kept_by_choice_and_counted(tmp_path):
    answers = ("fine", "open {", ["fine", "{"])
    dropped = questions(tmp_path, *answers, on_bad_gold="drop")
    check_golds(dropped, PaperReward())
    assert sorted(dropped.question("train", index).answers for index in range(2)) == [("fine",), ("fine",)]
    assert (dropped.reports["train"].num_unpayable, dropped.reports["train"].num_trimmed) == (1, 1)
    kept = questions(tmp_path, *answers, on_bad_gold="keep")
    check_golds(kept, PaperReward())
    assert (kept.num_questions("train"), kept.reports["train"].num_unpayable_kept) == (3, 2)
    with pytest.raises(DataError, match="`path` must hold usable questions, but none of"):
        check_golds(questions(tmp_path, "{", on_bad_gold="drop"), PaperReward())


def test_rows_in_memory_are_named_by_number():
    with pytest.raises(DataError, match=r"Rows of train, row 1: an answer must earn the full reward, but got '}'"):
        check_golds(ListedQuestions([{"question": "q", "answer": gold} for gold in "x}"]), PaperReward())


def test_what_cannot_tell_is_not_asked(tmp_path):
    check_golds(questions(tmp_path, "{"), lambda _: 1.0)
    check_golds(TrailTask(), PaperReward())


def test_long_prompts_are_dropped_and_counted_or_refused_with_their_place(tmp_path, letters):
    task = questions(tmp_path, *"x" * 11)  # the last one, q10, has a letter more
    longest = len(letters.encode_prompt((Message(role="user", content="q10"),)))
    check_lengths(task, letters, longest, "error")
    rule = rf"a\.jsonl, line 11: the prompt must have at most {longest - 1} tokens .* but has {longest}\."
    with pytest.raises(DataError, match=rule):
        check_lengths(task, letters, longest - 1, "error")
    check_lengths(task, letters, longest - 1, "drop")
    assert (task.num_questions("train"), task.reports["train"].num_long) == (10, 1)
    check_lengths(TrailTask(), letters, None, "drop")


@pytest.mark.parametrize(
    ("task", "limit", "named"),
    [
        (TrailTask(), 5, "must be null for a task that draws"),
        (TrailTask(), 0, "`max_prompt_tokens` must be at least 1"),
    ],
    ids=["task", "limit"],
)
def test_limits_without_meaning_are_refused(task, limit, named, letters):
    with pytest.raises(ConfigError, match=named):
        check_lengths(task, letters, limit, "drop")


@pytest.mark.usefixtures("without_type_checks")
def test_an_unknown_word_for_long_prompts_is_refused(letters):
    with pytest.raises(ConfigError, match="`on_long_prompt` must be 'drop' or 'error', but got 'skip'"):
        check_lengths(TrailTask(), letters, None, "skip")


def test_every_file_gets_a_line_and_what_was_dropped_is_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        announce(questions(tmp_path, "x"))
        announce(questions(tmp_path, "x", ""))
        announce(TrailTask())
    assert [(record.levelname, record.getMessage().partition(": ")[2]) for record in caplog.records] == [
        ("INFO", "1 rows, 1 kept, none dropped."),
        ("WARNING", "2 rows, 1 kept, 1 dropped: 1 without an answer."),
    ]
