"""`aepo-eval compare`: what it prints and refuses."""

import json

import pytest

from aepo_lightning.app.evaluation.compare import compare
from aepo_lightning.errors import DataError
from tests.support.evaluated import make_results, write_evaluation


@pytest.fixture
def folders(tmp_path):
    """Two evaluations: q0 got better, q2 worse."""
    before = write_evaluation(tmp_path / "a", make_results("100", "111", "110", "00"))
    after = write_evaluation(tmp_path / "b", make_results("111", "111", "100", "0?"), model={"name": "large"})
    return [str(before), str(after)]


def test_differences_and_questions_are_printed(folders, capsys):
    compare(folders)
    text = capsys.readouterr().out
    for piece in ("riddles (accuracy)", "50.0", "58.3", "+8.3 [", "1 questions got better, 1 worse", "what is q2?"):
        assert piece in text
    assert text.index("what is q0?") < text.index("what is q2?")
    assert "what is q1?" not in text


def test_a_terminal_obeys_nothing_in_a_question(tmp_path, capsys):
    before = write_evaluation(tmp_path / "a", make_results("0", question="\x1b]0;title\x07 \x9b2J why?"), num_samples=1)
    after = write_evaluation(tmp_path / "b", make_results("1", question="\x1b]0;title\x07 \x9b2J why?"), num_samples=1)
    compare([str(before), str(after)])
    text = capsys.readouterr().out
    assert "]0;title" in text
    assert not {"\x1b", "\x07", "\x9b"} & set(text)


def test_few_changes_are_listed_where_few_are_asked_for(folders, capsys):
    compare([*folders, "--changes", "0"])
    assert "what is" not in capsys.readouterr().out


def test_everything_is_printed_as_json(folders, capsys):
    compare([*folders, "--json"])
    found = json.loads(capsys.readouterr().out)["riddles"]
    assert found["paired"]["difference"]["value"] == pytest.approx(1 / 12)
    assert found["if_worst"] < found["if_best"]


def test_other_protocols_are_refused_unless_told(tmp_path, folders, capsys):
    other = write_evaluation(
        tmp_path / "c", make_results("1"), sampling={"temperature": 1.0, "top_p": 0.95}, num_samples=1
    )
    with pytest.raises(
        DataError, match=r"(?s)riddles: sampling.temperature: 0.6 -> 1.0\n.*compare with --other-protocol"
    ):
        compare([folders[0], str(other)])
    compare([folders[0], str(other), "--other-protocol"])
    text = capsys.readouterr().out
    assert "! measured in different ways:\n  riddles: sampling.temperature: 0.6 -> 1.0" in text
    assert "riddles: 3 and 1 samples of a question" in text


def test_evaluations_without_a_common_benchmark_are_refused(tmp_path, folders):
    other = write_evaluation(tmp_path / "c", [], benchmark="sums")
    with pytest.raises(DataError, match=r"must have a benchmark in common, but .*a has riddles and .*c has sums"):
        compare([folders[0], str(other)])
