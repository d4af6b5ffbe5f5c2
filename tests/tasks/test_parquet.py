import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aepo_lightning.contracts.question import Task
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.tasks.parquet import OfficialParquet, ParquetQuestions
from aepo_lightning.tasks.paths import data_root

BROKEN = "Put it in \x08oxed{} please."
FIXED = "Put it in \\boxed{} please."


def make_row(question, gold="gold", system=BROKEN, **fields):
    prompt = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return {"prompt": prompt, "reward_model": {"ground_truth": gold}, **fields}


def write(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def asked(task, split, indices):
    return [task.question(split, index).messages[-1].content for index in indices]


def test_rows_become_questions(tmp_path):
    extra = {"data_source": "src", "ability": "qa", "extra_info": {"index": 41}}
    path = write(tmp_path / "train.parquet", [make_row("who?", "me", **extra)])
    task = OfficialParquet(path=path)
    question = task.question("train", 0)
    assert isinstance(task, Task)
    assert question.question_id == "train-train-0"
    assert [(message.role, message.content) for message in question.messages] == [("system", FIXED), ("user", "who?")]
    assert question.answers == ("me",)
    assert question.metadata == {
        "data_source": "src",
        "ability": "qa",
        "index": 41,
        "row": 0,
        "file": "train.parquet",
    }


def test_optional_columns_may_be_missing_or_null(tmp_path):
    path = write(tmp_path / "a.parquet", [make_row("q", ability=None)])
    assert OfficialParquet(path=path).question("train", 0).metadata == {"row": 0, "file": "a.parquet"}


def test_backspace_is_repaired_and_counted(tmp_path):
    path = write(tmp_path / "a.parquet", [make_row("one"), make_row("two"), make_row("three", system="clean")])
    task = OfficialParquet(path=path)
    assert task.reports["train"].num_repaired == 2
    assert not any(
        "\x08" in message.content for index in range(3) for message in task.question("train", index).messages
    )


def test_backspace_stays_when_asked_to_stay(tmp_path):
    path = write(tmp_path / "a.parquet", [make_row("one")])
    task = OfficialParquet(path=path, fix_boxed=False)
    assert task.question("train", 0).messages[0].content == BROKEN
    assert task.reports["train"].num_repaired == 0


def test_bad_training_rows_are_dropped_and_counted(tmp_path):
    rows = [
        make_row("a"),
        make_row("b", " "),
        make_row("a"),
        make_row("c", None),
        make_row("v"),
        make_row("d"),
    ]
    path = write(tmp_path / "train.parquet", rows)
    val_path = write(tmp_path / "val.parquet", [make_row("v"), make_row("v", "again"), make_row("w", "")])
    task = OfficialParquet(path=path, val_path=val_path)
    report = task.reports["train"]
    assert sorted(asked(task, "train", range(2))) == ["a", "d"]
    assert (report.num_rows, report.num_kept, report.num_empty_answers) == (6, 2, 2)
    assert (report.num_duplicates, report.num_overlapping) == (1, 1)
    # validation keeps its duplicates, so that a published size stays what it was
    assert asked(task, "val", range(2)) == ["v", "v"]
    assert (task.reports["val"].num_rows, task.reports["val"].num_kept) == (3, 2)
    assert (task.num_questions("train"), task.num_questions("val")) == (2, 2)


def test_of_two_equal_questions_the_first_takes_over_the_answers_of_the_other(tmp_path):
    path = write(tmp_path / "a.parquet", [make_row("a", "first"), make_row("a", "second"), make_row("a", "first")])
    task = OfficialParquet(path=path)
    assert task.question("train", 0).answers == ("first", "second")
    assert (task.reports["train"].num_merged, task.reports["train"].num_duplicates) == (1, 1)
    with pytest.raises(DataError, match=r"row 1: a prompt must have the same answers .* and \('first',\) in .*row 0"):
        OfficialParquet(path=path, on_conflict="error")


def test_list_of_golds_gives_every_accepted_answer(tmp_path):
    path = write(tmp_path / "a.parquet", [make_row("a", ["x", "", "y"])])
    assert OfficialParquet(path=path).question("train", 0).answers == ("x", "y")


def test_every_epoch_is_another_permutation_with_ids_of_its_own(tmp_path):
    names = [f"q{number}" for number in range(20)]
    path = write(tmp_path / "a.parquet", [make_row(name) for name in names])
    task = OfficialParquet(path=path)
    first, second = asked(task, "train", range(20)), asked(task, "train", range(20, 40))
    assert sorted(first) == sorted(second) == sorted(names)
    assert len({tuple(first), tuple(second), tuple(names)}) == 3
    assert len({task.question("train", index).question_id for index in range(60)}) == 60
    assert asked(OfficialParquet(path=path), "train", range(40)) == first + second
    assert asked(OfficialParquet(path=path, seed=1), "train", range(20)) != first


def test_validation_stands_in_file_order_and_ends(tmp_path):
    path = write(tmp_path / "a.parquet", [make_row("t")])
    val_path = write(tmp_path / "b.parquet", [make_row("y"), make_row("x")])
    task = OfficialParquet(path=path, val_path=val_path)
    assert asked(task, "val", range(2)) == ["y", "x"]
    for index in (-1, 2):
        with pytest.raises(IndexError, match="`index` must be a position of split 'val'"):
            task.question("val", index)


def test_there_is_no_validation_without_a_file(tmp_path):
    task = OfficialParquet(path=write(tmp_path / "a.parquet", [make_row("t")]))
    assert task.num_questions("val") == 0
    with pytest.raises(IndexError, match="0 questions"):
        task.question("val", 0)


def test_ids_differ_between_files_of_the_same_name(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.parquet", [make_row(folder)])
    task = OfficialParquet(path="one/a.parquet", val_path="two/a.parquet", data_dir=str(tmp_path))
    assert task.question("train", 0).question_id != task.question("val", 0).question_id


def test_relative_paths_start_from_the_environment_unless_told_otherwise(tmp_path, monkeypatch):
    for folder in ("env", "given"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.parquet", [make_row(folder)])
    monkeypatch.setenv("AEPO_DATA_DIR", str(tmp_path / "env"))
    assert asked(OfficialParquet(path="a.parquet"), "train", [0]) == ["env"]
    assert asked(OfficialParquet(path="a.parquet", data_dir=str(tmp_path / "given")), "train", [0]) == ["given"]
    write(tmp_path / "a.parquet", [make_row("here")])
    monkeypatch.chdir(tmp_path)
    assert asked(OfficialParquet(path="a.parquet"), "train", [0]) == ["here"]
    assert asked(OfficialParquet(path="a.parquet", data_dir=str(tmp_path / "given")), "train", [0]) == ["given"]


@pytest.mark.parametrize(
    "row, named",
    [
        (make_row("q", True), r"row 0: `reward_model\.ground_truth` must be a text, a number or a list of them"),
        (make_row("q", [True]), r"row 0: `reward_model\.ground_truth` must be a text"),
        ({**make_row("q"), "reward_model": {"style": "rule"}}, r"row 0: `reward_model` must hold a `ground_truth`"),
        ({**make_row("q"), "reward_model": "gold"}, r"row 0: `reward_model` must hold a `ground_truth`, but got str"),
        ({**make_row("q"), "prompt": "text"}, r"row 0: `prompt` must be a non-empty list of messages, but got str"),
        ({**make_row("q"), "prompt": []}, r"row 0: `prompt` must be a non-empty list"),
        ({**make_row("q"), "prompt": [{"role": "user"}]}, r"row 0: `prompt\[0\]` must have a text role and content"),
        ({**make_row("q"), "prompt": ["text"]}, r"row 0: `prompt\[0\]` must have a text role and content"),
    ],
    ids=["bool_gold", "bool_list", "no_gold", "text_gold", "text_prompt", "empty", "no_content", "text_message"],
)
def test_values_of_the_wrong_type_are_named_with_file_and_row(tmp_path, row, named):
    path = write(tmp_path / "bad.parquet", [row])
    with pytest.raises(DataError, match=rf"bad\.parquet, {named}"):
        OfficialParquet(path=path)


@pytest.mark.parametrize("column", ["prompt", "reward_model"])
def test_missing_columns_are_named(tmp_path, column):
    row = {name: value for name, value in make_row("q", other="x").items() if name != column}
    with pytest.raises(DataError, match=rf"bad\.parquet must have a column `{column}`, but has"):
        OfficialParquet(path=write(tmp_path / "bad.parquet", [row]))


def test_missing_files_are_named_with_what_to_set(tmp_path):
    with pytest.raises(DataError, match=r"must name a file, but got 'no\.parquet'.*AEPO_DATA_DIR"):
        OfficialParquet(path="no.parquet", data_dir=str(tmp_path))


def test_files_of_another_format_are_refused(tmp_path):
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(DataError, match=r"text\.parquet must be a parquet file, but reading it failed"):
        OfficialParquet(path=str(tmp_path / "text.parquet"))


def test_files_without_a_usable_question_are_refused(tmp_path):
    path = write(tmp_path / "empty.parquet", [make_row("q", "")])
    with pytest.raises(DataError, match="`path` must hold usable questions"):
        OfficialParquet(path=path)


@pytest.mark.parametrize(
    "name, num_rows, num_kept",
    [pytest.param("train_10k", 10000, 9962, marks=pytest.mark.slow), ("hard_search_1k", 1071, 1071)],
    ids=str,
)
def test_published_files_have_the_published_counts(name, num_rows, num_kept):
    files = [f"{name}.parquet", "valid.parquet"]
    for file in files:
        if not (data_root(None) / file).is_file():
            pytest.skip(f"published file {file} is not here (set AEPO_DATA_DIR)")
    task = OfficialParquet(path=files[0], val_path=files[1])
    report = task.reports["train"]
    # train_10k: 10000 - 1 empty gold - 37 exact duplicates = 9962
    assert (report.num_rows, report.num_kept) == (num_rows, num_kept)
    assert report.num_repaired == num_rows
    assert task.num_questions("val") == 180
    questions = [task.question("train", index) for index in range(num_kept)]
    validation = {task.question("val", index).messages[-1].content for index in range(180)}
    assert all([message.role for message in question.messages] == ["system", "user"] for question in questions)
    assert not any("\x08" in message.content for question in questions for message in question.messages)
    assert all("\\boxed{answer here}" in question.messages[0].content for question in questions)
    assert not validation & {question.messages[-1].content for question in questions}
    assert len({question.question_id for question in questions}) == num_kept


def test_own_columns_become_questions(tmp_path):
    rows = [{"question": "who?", "answer": "me", "more": 1}, {"question": "how many?", "answer": None, "more": 2}]
    task = ParquetQuestions(write(tmp_path / "my.parquet", rows), ability="qa", system_prompt="Be brief.")
    question = task.question("train", 0)
    assert isinstance(task, Task)
    assert question.question_id == "train-my-0"
    assert [(message.role, message.content) for message in question.messages] == [
        ("system", "Be brief."),
        ("user", "who?"),
    ]
    assert question.answers == ("me",)
    assert question.metadata == {"file": "my.parquet", "row": 0, "ability": "qa"}
    assert task.reports["train"].num_empty_answers == 1


@pytest.mark.parametrize(
    "name", ["reward_model.ground_truth.target", "flat.target"], ids=["nested", "column_with_a_dot"]
)
def test_own_answers_may_be_lists_in_nested_columns(tmp_path, name):
    row = {"asked": "q", "reward_model": {"ground_truth": {"target": ["x", "y"]}}, "flat.target": ["x", "y"]}
    path = write(tmp_path / "my.parquet", [row])
    assert ParquetQuestions(path, question_field="asked", answer_field=name).question("train", 0).answers == ("x", "y")


@pytest.mark.parametrize(
    "values, answers", [([70, 8], ("70",)), ([0.5, float("nan")], ("0.5",)), (["#1", "#2"], ("#1",))], ids=str
)
def test_own_answers_may_be_numbers_and_not_a_number_is_none(tmp_path, values, answers):
    rows = [{"question": f"q{number}", "answer": value} for number, value in enumerate(values)]
    task = ParquetQuestions(val_path=write(tmp_path / "my.parquet", rows))
    assert task.question("val", 0).answers == answers
    assert task.num_questions("val") == (1 if values[1] != values[1] else 2)


def test_own_answers_are_taken_out_by_a_pattern(tmp_path):
    path = write(tmp_path / "my.parquet", [{"question": "q", "answer": "so #### 7"}])
    assert ParquetQuestions(path, answer_pattern="#### (.+)").question("train", 0).answers == ("7",)


@pytest.mark.parametrize(
    "row, named",
    [
        ({"question": "q"}, r" must have a column `answer`, but has \['question'\]"),
        ({"question": 3, "answer": "x"}, r", row 0: `question` must be a non-empty text, but got int 3"),
        ({"question": "q", "answer": {"a": 1}}, r", row 0: `answer` must be a text, a number or a list of them"),
    ],
    ids=["no_column", "number", "struct"],
)
def test_own_rows_that_cannot_be_used_are_named(tmp_path, row, named):
    with pytest.raises(DataError, match=rf"bad\.parquet{named}"):
        ParquetQuestions(write(tmp_path / "bad.parquet", [row]))


def test_a_map_is_an_object_and_its_keys_are_no_answers(tmp_path):
    golds = pa.array([[("target", ["x", "y"])]], type=pa.map_(pa.string(), pa.list_(pa.string())))
    pq.write_table(pa.table({"question": ["q"], "answer": golds}), tmp_path / "a.parquet")
    assert ParquetQuestions(tmp_path / "a.parquet").question("train", 0).answers == ("x", "y")
    twice = pa.array([[("target", ["x"]), ("target", ["y"])]], type=golds.type)
    pq.write_table(pa.table({"question": ["q"], "answer": twice}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet must have each key of a map once"):
        ParquetQuestions(tmp_path / "b.parquet")


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    columns = [pa.array([text]) for text in ("q", "x", "y")]
    pq.write_table(pa.Table.from_arrays(columns, ["question", "answer", "answer"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="must have each column once, but has `answer` 2 times"):
        ParquetQuestions(tmp_path / "a.parquet")


def test_one_own_file_is_needed():
    with pytest.raises(ConfigError, match="`path` or `val_path` must name a file"):
        ParquetQuestions()
