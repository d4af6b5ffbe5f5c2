import json

import pytest

from aepo_lightning.contracts.question import Task
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.tasks.jsonl import JsonlQuestions
from aepo_lightning.tasks.paths import data_root


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def test_lines_become_questions(tmp_path):
    path = write(tmp_path / "a.jsonl", {"question": "who?", "answer": ["me", "I"]})
    task = JsonlQuestions(val_path=path, ability="qa")
    question = task.question("val", 0)
    assert isinstance(task, Task)
    assert question.question_id == "val-a-1"
    assert [message.role for message in question.messages] == ["user"]
    assert [message.content for message in question.messages] == ["who?"]
    own = JsonlQuestions(val_path=path, system_prompt="Mine.").question("val", 0)
    assert [message.content for message in own.messages] == ["Mine.", "who?"]
    assert question.answers == ("me", "I")
    assert question.metadata == {"file": "a.jsonl", "line": 1, "ability": "qa"}


@pytest.mark.parametrize(
    "value, answers",
    [
        ("x", ("x",)),
        (70, ("70",)),
        (0.5, ("0.5",)),
        (5.0, ("5",)),
        (1e-7, ("0.0000001",)),
        (["a", 1, "", None], ("a", "1")),
        ({"target": ["a", 2]}, ("a", "2")),
        ([[1, 2], "x"], ("1", "2", "x")),
    ],
    ids=["text", "int", "float", "whole", "small", "list", "target", "nested"],
)
def test_answers_may_be_texts_numbers_or_lists(tmp_path, value, answers):
    path = write(tmp_path / "a.jsonl", {"problem": "q", "gold": value})
    task = JsonlQuestions(path=path, question_field="problem", answer_field="gold", system_prompt="")
    assert task.question("train", 0).answers == answers
    assert [message.role for message in task.question("train", 0).messages] == ["user"]


def test_dots_reach_into_nested_objects_unless_a_field_has_that_name(tmp_path):
    row = {"a": {"b": {"c": "asked?"}, "d.e": ["1", 2]}, "a.d": {"e": "other"}}
    path = write(tmp_path / "a.jsonl", row)
    task = JsonlQuestions(path, question_field="a.b.c", answer_field="a.d.e", system_prompt="")
    assert task.question("train", 0).messages[0].content == "asked?"
    assert task.question("train", 0).answers == ("1", "2")


@pytest.mark.parametrize(
    "name, named",
    [
        ("a.x", r"line 1 must have a field `a\.x`, but `a` is \['b'\]\. Set `answer_field` to another name"),
        ("a.b.c", r"line 1 must have a field `a\.b\.c`, but `a\.b` is int 1"),
        ("x.b", r"line 1 must have a field `x\.b`, but has \['question', 'a'\]"),
    ],
)
def test_nested_fields_that_are_missing_are_named(tmp_path, name, named):
    path = write(tmp_path / "a.jsonl", {"question": "q", "a": {"b": 1}})
    with pytest.raises(DataError, match=named):
        JsonlQuestions(path, answer_field=name)


def test_dots_reach_into_each_object_of_a_list(tmp_path):
    path = write(tmp_path / "a.jsonl", {"question": "q", "answers": [{"text": "x"}, {"text": ["y", "z"]}]})
    assert JsonlQuestions(path, answer_field="answers.text").question("train", 0).answers == ("x", "y", "z")


def test_a_question_may_be_a_list_of_messages(tmp_path):
    told = [{"role": "system", "content": "Own."}, {"role": "user", "content": "q"}]
    path = write(tmp_path / "a.jsonl", {"question": told, "answer": "x"}, {"question": told[1:], "answer": "y"})
    task = JsonlQuestions(val_path=path, system_prompt="Mine.")
    spoken = [[message.content for message in task.question("val", index).messages] for index in range(2)]
    assert spoken == [["Own.", "q"], ["Mine.", "q"]]


def test_a_pattern_that_finds_nothing_is_named_and_one_that_finds_a_blank_leaves_no_answer(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": "#"}\n{"question": "r", "answer": "# 1"}\n')
    assert JsonlQuestions(path, answer_pattern="#(.*)").reports["train"].num_empty_answers == 1
    with pytest.raises(DataError, match=r"line 1: `answer` must match '#\( 1\)\?', but got"):
        JsonlQuestions(path, answer_pattern="#( 1)?")


def test_a_file_without_a_usable_question_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": ""}\n')
    with pytest.raises(DataError, match="`path` must hold usable questions, but none of"):
        JsonlQuestions(tmp_path / "a.jsonl")


def test_pattern_takes_the_answer_out_of_a_solution(tmp_path):
    path = write(tmp_path / "a.jsonl", {"question": "q", "answer": "9 * 2 = 18\n#### 18"})
    assert JsonlQuestions(path=path, answer_pattern=r"####\s*(.+)").question("train", 0).answers == ("18",)


def test_blank_lines_and_unicode_separators_do_not_break_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"question": "a\u2028b", "answer": "x"}\r\n\n{"question": "c", "answer": "y"}', encoding="utf-8")
    task = JsonlQuestions(val_path=str(path))
    assert [task.question("val", index).messages[-1].content for index in range(2)] == ["a\u2028b", "c"]
    assert [task.question("val", index).question_id for index in range(2)] == ["val-a-2", "val-a-4"]


def test_bad_training_lines_are_dropped_and_counted(tmp_path):
    records = [("a", "1"), ("a", "1"), ("b", ""), ("c", []), ("d", None), ("v", "1"), ("e", "1")]
    path = write(tmp_path / "t.jsonl", *({"question": asked, "answer": gold} for asked, gold in records))
    val_path = write(tmp_path / "v.jsonl", {"question": "v", "answer": "1"})
    report = JsonlQuestions(path=path, val_path=val_path).reports["train"]
    assert (report.num_rows, report.num_kept, report.num_empty_answers) == (7, 2, 3)
    assert (report.num_duplicates, report.num_overlapping, report.num_repaired) == (1, 1, 0)


def test_training_wraps_in_another_order_and_validation_ends(tmp_path):
    path = write(tmp_path / "a.jsonl", *({"question": f"q{number}", "answer": "x"} for number in range(20)))
    task = JsonlQuestions(path=path)
    first = [task.question("train", index).messages[-1].content for index in range(20)]
    second = [task.question("train", index).messages[-1].content for index in range(20, 40)]
    assert sorted(first) == sorted(second)
    assert first != second
    with pytest.raises(IndexError, match="split 'val'"):
        task.question("val", 0)


def test_there_is_no_training_without_a_file(tmp_path):
    task = JsonlQuestions(val_path=write(tmp_path / "a.jsonl", {"question": "q", "answer": "x"}))
    assert task.num_questions("train") == 0
    with pytest.raises(IndexError, match="split 'train'"):
        task.question("train", 0)


@pytest.mark.parametrize(
    "line, named",
    [
        ("{", r"line 2 must be one JSON object, but is not"),
        ("[1]", r"line 2 must be one JSON object, but got"),
        ('{"answer": "x"}', r"line 2 must have a field `question`, but has \['answer'\]"),
        ('{"question": "q"}', r"line 2 must have a field `answer`"),
        ('{"question": 3, "answer": "x"}', r"line 2: `question` must be a non-empty text, but got int 3"),
        ('{"question": " ", "answer": "x"}', r"line 2: `question` must be a non-empty text"),
        ('{"question": "q", "answer": true}', r"line 2: `answer` must be a text, a number or a list"),
        ('{"question": "q", "answer": {"a": 1}}', r"line 2: `answer` must be a text, a number or a list"),
        ('{"question": "q", "answer": "none"}', r"line 2: `answer` must match '#\(\.\+\)', but got str 'none'"),
        ('{"question": "q", "answer": 1e999}', r"line 2: `answer` must be .*, and a number must be finite"),
        ('{"question": "q\\ud83d", "answer": "x"}', r"line 2: `question` must be text without half a surrogate pair"),
        ('{"question": "q", "answer": ["\\udc00"]}', r"line 2: `answer` must be text without half a surrogate pair"),
        ('{"question": "q", "question": "r", "answer": "x"}', r"line 2 must be .* it has the field 'question' twice"),
        ("[" * 100_000, r"line 2 must be one JSON object, but is nested too deeply"),
        ('{"question": "q", "answer": ' + "9" * 5000 + "}", r"line 2 must be one JSON object, but is not: Exceeds"),
        (
            '{"question": [{"role": "user"}], "answer": "#1"}',
            r"line 2: `question\[0\]` must have a text role and content",
        ),
    ],
    ids=lambda value: value[:40] if value.startswith("{") else "",
)
def test_bad_lines_are_named_with_file_line_and_field(tmp_path, line, named):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "fine", "answer": "#1"}\n' + line + "\n")
    with pytest.raises(DataError, match=rf"bad\.jsonl, {named}"):
        JsonlQuestions(path=str(path), answer_pattern="#(.+)")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_says_the_encoding(tmp_path, encoding):
    (tmp_path / "a.jsonl").write_text('{"question": "wo, M\u00fcnchen?", "answer": "S\u00fcden"}\n', encoding=encoding)
    question = JsonlQuestions(tmp_path / "a.jsonl").question("train", 0)
    assert (question.messages[0].content, question.answers) == ("wo, M\u00fcnchen?", ("S\u00fcden",))


def test_a_file_may_be_one_list_of_objects(tmp_path):
    rows = [{"question": "q", "answer": 1}, {"question": "r", "answer": 2}]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=2))
    task = JsonlQuestions(val_path=str(tmp_path / "a.json"))
    assert [task.question("val", index).question_id for index in range(2)] == ["val-a-1", "val-a-2"]
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(DataError, match=r"b\.json, item 1 must be one JSON object, but got 1"):
        JsonlQuestions(str(tmp_path / "b.json"))


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "bad.jsonl").write_bytes(b'{"question": "\xff", "answer": "x"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl, line 1 must be one JSON object"):
        JsonlQuestions(path=str(tmp_path / "bad.jsonl"))


def test_at_least_one_file_is_needed():
    with pytest.raises(ConfigError, match="`path` or `val_path` must name a file"):
        JsonlQuestions()


@pytest.mark.parametrize("pattern, rule", [("(", "be a regular expression"), ("####", "have a group")], ids=str)
def test_patterns_that_cannot_be_used_are_refused(pattern, rule):
    with pytest.raises(ConfigError, match=f"`answer_pattern` must {rule}"):
        JsonlQuestions(path="a.jsonl", answer_pattern=pattern)


@pytest.mark.parametrize(
    "name, num_questions, settings, first",
    [
        ("2wiki", 200, {}, "the five boroughs"),
        ("SimpleQA", 500, {}, "Michio Sugeno"),
        ("aime24", 30, {}, "204"),
        ("aime25", 30, {"question_field": "problem"}, "70"),
        ("bamboogle", 125, {}, "james madison"),
        ("gsm8k", 1319, {"answer_pattern": r"#### (.+)"}, "18"),
        ("hotpotqa", 200, {}, "Frank Lowy"),
        ("math500", 500, {}, r"\left( 3, \frac{\pi}{2} \right)"),
        ("musique", 200, {}, "passes over the Rio di Palazzo"),
        ("webwalker", 200, {}, "资格申请截止日期为2024年10月27日"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() else "",
)
def test_published_benchmarks_are_read_whole(name, num_questions, settings, first):
    file = f"benchmarks/{name}.jsonl"
    if not (data_root(None) / file).is_file():
        pytest.skip(f"published file {file} is not here (set AEPO_DATA_DIR)")
    task = JsonlQuestions(val_path=file, **settings)
    assert task.num_questions("val") == num_questions
    assert task.question("val", 0).answers[0].startswith(first)
