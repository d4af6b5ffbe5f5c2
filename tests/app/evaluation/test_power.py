"""`aepo-eval power`: what it prints and refuses."""

import pytest

from aepo_lightning.app.evaluation.power import power
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.evaluation.power import Spread, questions_needed
from tests.support.evaluated import make_results, write_evaluation


@pytest.fixture
def folder(tmp_path):
    """An evaluation of four questions: means 1/2, 1, 0, 1/2."""
    return write_evaluation(tmp_path / "a", make_results("10", "11", "00", "01"))


def rows_of(text):
    return [[cell.strip() for cell in line.split("\u2502")[1:-1]] for line in text.splitlines() if "riddles" in line]


def test_one_evaluation_gives_a_row_for_each_correlation_and_number_of_samples(folder, capsys):
    power([str(folder), "--num-samples", "1", "4", "--correlation", "0.5", "--difference", "10"])
    # within 1/4 (twice 1/2, twice 0); of means 1/6, of true ones 1/6 - 1/8 = 1/24; at 0.5 differences have 1/24
    spread = Spread(between=1 / 24, within=(0.25, 0.25))
    numbers = [str(questions_needed(spread, 0.1, num_samples=n)) for n in (1, 4)]
    assert [row[1:5] for row in rows_of(capsys.readouterr().out)] == [
        ["0.5", "1", numbers[0], "4"],
        ["0.5", "4", numbers[1], "4"],
    ]


def test_two_evaluations_measure_how_differences_spread(tmp_path, folder, capsys):
    other = write_evaluation(tmp_path / "b", make_results("11", "11", "00", "11"))
    power([str(folder), str(other), "--num-samples", "2"])
    ((_, correlation, samples, needed, here, _),) = rows_of(capsys.readouterr().out)
    # differences 1/2, 0, 0, 1/2: variance 1/12; noise 1/8; nothing is left, and within 1/4 and 0
    assert (correlation, samples, here) == ("measured", "2", "4")
    assert needed == str(questions_needed(Spread(between=0.0, within=(0.25, 0.0)), 0.02, num_samples=2))


def test_a_pilot_of_one_sample_says_what_one_sample_needs(tmp_path, capsys):
    power([str(write_evaluation(tmp_path / "a", make_results("1", "0", "1", "0")))])
    ((_, correlation, samples, *_),) = rows_of(capsys.readouterr().out)
    assert (correlation, samples) == ("0", "1")


def test_a_pilot_that_does_not_vary_does_not_say_that_two_questions_are_enough(tmp_path, capsys):
    folder = write_evaluation(tmp_path / "a", make_results("00", "00"))
    power([str(folder), "--correlation", "0.5", "--num-samples", "1"])
    text = capsys.readouterr().out
    assert rows_of(text)[0] == ["riddles", "0.5", "1", "-", "2", "-"]
    assert "! riddles: no score of the pilot differs from another" in text


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--difference", "0"], "`difference` must be positive"),
        (["--power", "1"], "`power` must be in"),
        (["--correlation", "2"], "`correlation` must be in"),
        (["--num-samples", "0"], "`num_samples` must be at least 1"),
    ],
)
def test_numbers_without_meaning_are_refused(folder, words, problem):
    with pytest.raises(ConfigError, match=problem):
        power([str(folder), *words])


def test_a_benchmark_with_too_few_questions_is_left_out_by_name(tmp_path, folder, capsys):
    tiny = make_results("10", "??", benchmark="tiny")
    for each in (folder, tmp_path / "b"):
        write_evaluation(each, tiny, benchmark="tiny")
    write_evaluation(tmp_path / "b", make_results("11", "11", "00", "11"))
    for words in ([str(folder), "--correlation", "0.5", "--num-samples", "1"], [str(folder), str(tmp_path / "b")]):
        power(words)
        text = " ".join(capsys.readouterr().out.split())
        assert "riddles" in text
        assert "! tiny: a pilot must have at least two questions with verdicts, but got 1. It is left out." in text


def test_pilots_that_are_too_small_or_none_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least two questions with verdicts, but got 1 of riddles"):
        power([str(write_evaluation(tmp_path / "a", make_results("10", "??")))])
    with pytest.raises(DataError, match="The folder of an evaluation must hold"):
        power([str(tmp_path / "nowhere")])
