"""Files of one's own: which are found, which rows are kept, and what is said of the others."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.tasks import JsonlQuestions, ListedQuestions, ParquetQuestions
from aepo_lightning.tasks.splits import check_choices

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "q"}


def write(path, *rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(question="q", answer="x"):
    return {"question": question, "answer": answer}


def asked(task, split="val"):
    return [task.question(split, index).messages[-1].content for index in range(task.num_questions(split))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("b", "a", "c"):
        write(tmp_path / "data" / f"{name}.jsonl", row(name))
    write(tmp_path / "more" / "a.jsonl", row("again"))
    write(tmp_path / "odd" / "[1].jsonl", row("literal"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        ("data/*.jsonl", ["a", "b", "c"]),
        (["data/c.jsonl", "data/a.jsonl"], ["c", "a"]),
        (["more/a.jsonl", "data/?.jsonl", "data/a.jsonl"], ["again", "a", "b", "c"]),
        ("**/a.jsonl", ["a", "again"]),
        ("odd/[1].jsonl", ["literal"]),
    ],
    ids=["pattern", "list", "both", "folders", "literal"],
)
def test_files_are_named_by_patterns_and_lists(folder, paths, found):
    task = JsonlQuestions(val_path=paths)
    assert asked(task) == found
    assert len({task.question("val", index).question_id for index in range(len(found))}) == len(found)
    assert len(task.summary()) == len(found)


@pytest.mark.parametrize(
    ("paths", "error", "named"),
    [
        ("data/*.json", DataError, r"`path` must name a file, but got 'data/\*\.json' and there is no"),
        ("data", DataError, r"`path` must name files, but .*data is a folder\. Write path='data/\*\.jsonl'"),
        ([], ConfigError, r"`path` must be a file, a pattern or a list of them, but got \[\]"),
    ],
    ids=["pattern", "folder", "empty"],
)
def test_what_names_no_file_is_refused(folder, paths, error, named):
    with pytest.raises(error, match=named):
        JsonlQuestions(paths)


def test_the_whole_prompt_decides_what_a_duplicate_is(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        row([SYSTEM, USER]),
        row([USER]),
        row([{"role": "user", "content": "before"}, {"role": "assistant", "content": "yes"}, USER]),
        row([USER]),
    )
    report = JsonlQuestions(path).reports["train"]
    assert (report.num_kept, report.num_duplicates) == (3, 1)


def test_what_validation_asks_is_left_out_whatever_the_system_is_told(tmp_path):
    path, val_path = write(tmp_path / "a.jsonl", row([SYSTEM, USER]), row("r")), write(tmp_path / "v.jsonl", row())
    task = JsonlQuestions(path, val_path=val_path)
    assert (asked(task, "train"), task.reports["train"].num_overlapping) == (["r"], 1)


@pytest.mark.parametrize(
    ("answers", "kept"),
    [((["x", "y"], "x"), ("x", "y")), (("x", "y"), ("x", "y")), (("x", ["x", "z"]), ("x", "z"))],
    ids=["fewer", "other", "more"],
)
def test_a_prompt_that_comes_again_brings_its_answers(tmp_path, answers, kept):
    path = write(tmp_path / "a.jsonl", *(row(answer=answer) for answer in answers))
    task = JsonlQuestions(path)
    assert (task.num_questions("train"), task.question("train", 0).answers) == (1, kept)


def test_other_answers_to_one_prompt_are_refused_with_both_places(tmp_path):
    path = write(tmp_path / "a.jsonl", row(), row(answer=["x"]), row(answer="y"))
    with pytest.raises(DataError, match=r"a\.jsonl, line 3: .* but got \('y',\) here and \('x',\) in .*, line 1\."):
        JsonlQuestions(path, on_conflict="error")


def test_one_line_a_file_says_what_was_kept_and_dropped_and_why(tmp_path):
    first = write(tmp_path / "a.jsonl", row(), row(), row("r", ""), row("s", "\x08oxed{5}"), row("v"))
    second = write(tmp_path / "b.jsonl", row("t"), row(answer="y"))
    task = JsonlQuestions([first, second], val_path=write(tmp_path / "v.jsonl", row("v"), row("v"), row("w", None)))
    assert task.summary() == [
        f"{first}: 5 rows, 2 kept, 3 dropped: 1 without an answer, 1 asked before, 1 also asked in validation; "
        "1 repaired (\\b and \\f of LaTeX commands).",
        f"{second}: 2 rows, 1 kept, 1 dropped: 1 asked before with other answers, which the first one took over.",
        f"{tmp_path}/v.jsonl: 3 rows, 2 kept, 1 dropped: 1 without an answer.",
    ]
    total = task.reports["train"]
    assert (total.num_rows, total.num_kept, total.num_dropped) == (7, 3, 4)


@pytest.mark.parametrize(
    ("broken", "repaired"),
    [
        ("\x08oxed{1}", r"\boxed{1}"),
        ("a \x08eta", r"a \beta"),
        ("\x0crac{1}{2}", r"\frac{1}{2}"),
        ("page\x0cNext", "page\x0cNext"),
        ("\x08 ", "\x08 "),
    ],
    ids=["boxed", "beta", "frac", "page", "alone"],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "listed"])
def test_latex_is_repaired_in_prompts_and_answers_of_every_source(tmp_path, kind, broken, repaired):
    rows = [row(f"q {broken}", ["x", f"y {broken}"])]
    if kind == "listed":
        task = ListedQuestions(rows)
    elif kind == "jsonl":
        task = JsonlQuestions(write(tmp_path / "a.jsonl", *rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        task = ParquetQuestions(tmp_path / "a.parquet")
    question = task.question("train", 0)
    assert (question.messages[-1].content, question.answers[1]) == (f"q {repaired}", f"y {repaired}")


def test_what_is_broken_stays_so_if_that_is_wanted(tmp_path):
    task = JsonlQuestions(write(tmp_path / "a.jsonl", row("\x08oxed")), fix_boxed=False)
    assert asked(task, "train") == ["\x08oxed"]


@pytest.mark.parametrize(
    ("words", "name"), [(("first", "keep"), "on_conflict"), (("merge", "first"), "on_bad_gold")], ids=["1", "2"]
)
def test_unknown_words_are_refused(words, name):
    with pytest.raises(ConfigError, match=f"`{name}` must be one of .*, but got 'first'"):
        check_choices(*words)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("name", ["on_conflict", "on_bad_gold"])
def test_a_task_refuses_them_too(tmp_path, name):
    with pytest.raises(ConfigError, match=f"`{name}` must be one of .*, but got 'first'"):
        JsonlQuestions(write(tmp_path / "a.jsonl", row()), **{name: "first"})
