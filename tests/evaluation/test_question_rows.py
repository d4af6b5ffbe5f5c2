"""Rows of benchmarks as questions: alternatives, levels, attachments, encryption, and rows that cannot be used."""

import json
from base64 import b64encode
from itertools import cycle

import pytest

from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.evaluation.question_rows import QuestionRows


def read(rows, **settings):
    placed = [(f"tiny.jsonl, line {number}", row) for number, row in enumerate(rows, 1)]
    return QuestionRows(**settings).questions("tiny", placed)


def encrypted(text, key):
    return b64encode(bytes(a ^ b for a, b in zip(text.encode(), cycle(key.encode()), strict=False))).decode()


def test_the_first_field_that_a_row_has_counts():
    rows = [{"Question": "2 + 2?", "Final answer": 4}, {"problem": "Who?", "answer": ["Ada", "Ada L."]}]
    first, second = read(rows, question_fields=["Question", "problem"], answer_fields=["answer", "Final answer"])
    assert (first.messages[-1].content, first.answers, first.question_id) == ("2 + 2?", ("4",), "tiny-0")
    assert (second.messages[-1].content, second.answers, second.question_id) == ("Who?", ("Ada", "Ada L."), "tiny-1")


def test_a_level_is_named_and_may_stand_deeper():
    rows = [{"question": "a", "answer": "b", "info": {"level": 3}}, {"question": "c", "answer": "d", "Level": "Math"}]
    found = read(rows, level_fields=["info.level", "Level"], level_names={"3": "hard"})
    assert [each.metadata["level"] for each in found] == ["hard", "Math"]
    assert read(rows)[0].metadata == {"benchmark": "tiny", "level": ""}


def test_rows_with_attachments_are_left_out_before_they_are_counted():
    rows = [{"question": f"{n}?", "answer": n, "image": image} for n, image in enumerate(["data:", "", None, ""])]
    found = read(rows, attachment_fields=["image", "file_name"], max_questions=2)
    assert [each.question_id for each in found] == ["tiny-1", "tiny-2"]


def test_the_answer_proper_is_cut_out():
    rows = [{"question": "How many?", "answer": "3 * 4 = <<3*4=12>>12\n#### 1,012"}]
    assert read(rows, answer_pattern="#### (.+)")[0].answers == ("1,012",)


def test_encrypted_rows_are_read_with_the_key_that_stands_in_them():
    key = "an invented canary"
    rows = [{"prompt": encrypted("城市的名字", key), "answer": encrypted("Zürich", key), "canary": key}]
    found = read(rows, question_fields=["prompt"], canary_field="canary")
    assert (found[0].messages[0].content, found[0].answers) == ("城市的名字", ("Zürich",))
    plain = read([{"prompt": "Where?", "answer": "here"}], question_fields=["prompt"], canary_field="canary")
    assert plain[0].answers == ("here",)


def test_a_system_prompt_of_the_users_own_stands_before_the_question():
    (found,) = read([{"question": "a", "answer": "b"}], system_prompt="Use the tools.")
    assert [(message.role, message.content) for message in found.messages] == [
        ("system", "Use the tools."),
        ("user", "a"),
    ]


def test_choices_travel_with_a_question():
    found = read([{"question": "Which?", "answer": "B", "options": ["x", "y"]}], choices_field="options")
    assert found[0].metadata["choices"] == ["x", "y"]


@pytest.mark.parametrize(
    "rows, settings, told",
    [
        ([{"answer": "b"}], {}, r"tiny.jsonl, line 1 must have a field `question`, but has \['answer'\]"),
        ([{"question": "a"}], {}, r"line 1 must have a field `answer`, but has \['question'\]"),
        ([{"question": " ", "answer": "b"}], {}, "`question` must be a non-empty text, but got str ' '"),
        ([{"question": ["a"], "answer": "b"}], {}, r"`question` must be a non-empty text, but got list"),
        ([{"question": "a", "answer": []}], {}, r"`answer` must hold an accepted answer, but got list \[\]"),
        ([{"question": "a", "answer": " "}], {}, "`answer` must hold an accepted answer, but got str ' '"),
        ([{"question": "a", "answer": "?"}], {"withheld_answers": ["?"]}, "hold an accepted answer, but got str '?'"),
        ([{"question": "a", "answer": True}], {}, "line 1: `answer` must be a text, a number or a list of them"),
        (
            [{"question": "a", "answer": "b", "options": "x or y"}],
            {"choices_field": "options"},
            "line 1: `options` must be a list of texts, but got str 'x or y'",
        ),
        ([{"question": "a", "answer": "no marks"}], {"answer_pattern": "#### (.+)"}, "must match '#### "),
        ([{"question": "\ud83d", "answer": "b"}], {}, "`question` must be text without half a surrogate pair"),
        (
            [{"question": "a", "answer": "b", "canary": "k"}],
            {"canary_field": "canary"},
            "`question` must be encrypted with the key of its row, but got str 'a'",
        ),
        (
            [{"question": "a", "answer": "b", "id": 7}, {"question": "c", "answer": "d", "id": "7"}],
            {"id_fields": ["id"]},
            "line 2: the id of a question must be its own, but 'tiny-7' stands in tiny.jsonl, line 1 as well",
        ),
        ([{"question": "a", "answer": "b", "image": "x"}], {"attachment_fields": ["image"]}, "none of 1 rows is left"),
        ([], {}, "none of 0 rows is left"),
    ],
)
def test_what_cannot_be_used_is_named(rows, settings, told):
    with pytest.raises(DataError, match=told):
        read(json.loads(json.dumps(rows)), **settings)


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"max_questions": 0}, "`max_questions` must be at least 1 or null, but got 0"),
        ({"answer_pattern": "("}, "`answer_pattern` must be a regular expression"),
        ({"answer_pattern": "x"}, "`answer_pattern` must have a group"),
    ],
)
def test_settings_without_meaning_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        QuestionRows(**settings)
