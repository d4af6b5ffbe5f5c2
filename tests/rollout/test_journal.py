"""The journal: what was written is read again, a cut last line costs that tree only, a spoilt line is named."""

import json
from types import MappingProxyType

import pytest

from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.errors import DataError
from aepo_lightning.rollout import RolloutJournal, tree_from_dict, tree_to_dict
from tests.support.builders import (
    RecordingBranchPolicy,
    ScriptedBudget,
    ScriptedEngine,
    grow,
    make_question,
    random_script,
)


def make_trees(number=3):
    changes = {"allocator": ScriptedBudget(num_root_chains=2), "branch_policy": RecordingBranchPolicy(), "budget": 6}
    return grow(ScriptedEngine(random_script()), [make_question(f"q{index}") for index in range(number)], **changes)


def without_documents(tree):
    """Rebuilding loses the question's corpus and nothing else."""
    plain = tree.question
    tree.question = Question(
        question_id=plain.question_id, messages=plain.messages, answers=plain.answers, metadata=plain.metadata
    )
    return tree


def write(tmp_path, trees, name="train-00001"):
    journal = RolloutJournal(tmp_path / "deep" / "folder")
    for tree in trees:
        journal.append(name, tree)
    return journal, journal.path(name)


def test_a_tree_survives_the_trip_through_plain_values():
    for tree in make_trees():
        plain = json.loads(json.dumps(tree_to_dict(tree)))
        assert "documents" not in plain["question"]
        assert tree_from_dict(plain) == without_documents(tree)


def test_writing_a_tree_leaves_it_as_it_was():
    (tree,) = make_trees(1)
    tree_to_dict(tree)
    assert tree.question.documents["e0"] == "go e0"


def test_a_question_may_keep_its_documents_in_any_mapping():
    (tree,) = make_trees(1)
    documents = MappingProxyType({"a": "b"})
    tree.question = Question(question_id="q", messages=(), answers=("x",), documents=documents)
    assert tree_from_dict(tree_to_dict(tree)).question.answers == ("x",)


def test_text_in_any_script_survives(tmp_path):
    (tree,) = make_trees(1)
    text = "line\u2028break \u0085 \x1c \r\n \U0001f600 \ud800"
    message = Message(role="user", content=text)
    tree.question = Question(question_id="q", messages=(message,), answers=(text,), metadata={"level": 2})
    journal, _ = write(tmp_path, [tree, tree])
    assert list(journal.read("train-00001")) == [tree, tree]


def test_trees_come_back_in_the_order_in_which_they_were_written(tmp_path):
    trees = make_trees()
    journal, path = write(tmp_path, trees)
    assert list(journal.read("train-00001")) == [without_documents(tree) for tree in trees]
    assert path.name == "train-00001.jsonl"


def test_names_have_files_of_their_own(tmp_path):
    trees = make_trees(2)
    journal, _ = write(tmp_path, trees[:1], "a")
    journal.append("b", trees[1])
    assert [tree.question.question_id for tree in journal.read("b")] == ["q1"]


def test_a_journal_without_file_is_empty(tmp_path):
    assert list(RolloutJournal(tmp_path).read("never")) == []


@pytest.mark.parametrize("keep", [1, 100, -2, -1], ids="{}_bytes".format)
def test_a_cut_last_line_costs_its_own_tree_only(tmp_path, keep):
    journal, path = write(tmp_path, make_trees())
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:keep])
    assert [tree.question.question_id for tree in journal.read("train-00001")] == ["q0", "q1"]


@pytest.mark.parametrize("num_whole", [0, 1, 2])
def test_a_run_that_goes_on_writes_over_the_cut_line(tmp_path, num_whole):
    trees = make_trees()
    journal, path = write(tmp_path, trees)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:num_whole]) + lines[2][:50])
    journal.append("train-00001", trees[2])
    read = [tree.question.question_id for tree in journal.read("train-00001")]
    assert read == [f"q{index}" for index in range(num_whole)] + ["q2"]


def test_an_empty_file_is_written_to(tmp_path):
    journal, path = write(tmp_path, make_trees(1))
    path.write_bytes(b"")
    journal.append("train-00001", make_trees(1)[0])
    assert len(list(journal.read("train-00001"))) == 1


def change(plain, where, value):
    *parents, last = where
    for key in parents:
        plain = plain[key]
    if value is None:
        del plain[last]
    else:
        plain[last] = value


def spoil(line, where, value):
    plain = json.loads(line)
    change(plain, where, value)
    return json.dumps(plain).encode() + b"\n"


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda line: line[:40] + b"\n",
        lambda line: b"\xff\xfe" + line,
        lambda _: b"\n",
        lambda _: b"[]\n",
        lambda _: b"17\n",
        lambda _: b"null\n",
        lambda line: spoil(line, ["segments"], None),
        lambda line: spoil(line, ["segments"], 3),
        lambda line: spoil(line, ["segments", 0, "source"], "nobody"),
        lambda line: spoil(line, ["segments", 0, "tool_call"], 3),
        lambda line: spoil(line, ["leaves", 0, "origin"], "nowhere"),
        lambda line: spoil(line, ["leaves", 0, "reward", "reward"], None),
        lambda line: spoil(line, ["leaves", 0, "seed_path"], 4),
        lambda line: spoil(line, ["question"], "q"),
        lambda line: spoil(line, ["question", "messages", 0, "role"], None),
        lambda line: spoil(line, ["surprise"], 1),
    ],
    ids=[
        *("cut", "bytes", "blank", "list", "number", "null", "no_segments", "segments", "source", "call", "origin"),
        *("reward", "seed_path", "question", "message", "surprise"),
    ],
)
def test_a_spoilt_line_in_the_middle_is_named(tmp_path, spoilt):
    journal, path = write(tmp_path, make_trees())
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = spoilt(lines[1])
    path.write_bytes(b"".join(lines))
    trees = journal.read("train-00001")
    assert next(trees).question.question_id == "q0"
    with pytest.raises(DataError, match=r"train-00001\.jsonl, line 2: "):
        next(trees)


@pytest.mark.parametrize(("num_asked", "num_taken"), [(2, 2), (3, 0)], ids=["whole", "part"])
def test_where_only_a_whole_rollout_will_do_a_part_is_set_aside(tmp_path, num_asked, num_taken):
    trees = make_trees(2)
    digests = {f"q{index}": f"digest {index}" for index in range(num_asked)}
    for tree in trees:
        tree.stamp, tree.question_digest = "stamp", digests[tree.question.question_id]
    journal, path = write(tmp_path, trees)
    with journal.open(path.stem, trees[0].seed, "stamp", digests, whole_only=True) as session:
        assert len(session.trees) == num_taken
    assert len(list(path.parent.glob("*.superseded-1"))) == (0 if num_taken else 1)
    with journal.open(path.stem, trees[0].seed, "stamp", digests) as session:
        assert len(session.trees) == num_taken
