"""The file of results: goes on under its stamp, loses at most a line, says what is missing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.evaluation.results_file import ResultsFile, read_evaluation, read_results, results_path
from tests.support.evaluated import make_result, make_results, make_stamp, write_evaluation

ASKED = ["q0", "q1"]


@pytest.fixture
def path(tmp_path):
    """A file with two of three samples of a question."""
    write_evaluation(tmp_path, make_results("10"))
    return results_path(tmp_path, "riddles")


def test_a_file_goes_on_with_what_is_missing(path):
    with ResultsFile(path, make_stamp()) as file:
        assert file.missing(ASKED) == [("q0", 2), ("q1", 0), ("q1", 1), ("q1", 2)]
        assert file.missing(ASKED, num_samples=1) == [("q1", 0)]
        file.append(make_result("q1", 1))
    found = read_results(path)
    assert found.stamp == make_stamp()
    assert [each.pair for each in found.results] == [("q0", 0), ("q0", 1), ("q1", 1)]


def test_another_setting_is_refused_by_name_and_the_file_stays(path):
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"these differ:\n  sampling.temperature: 0.6 -> 1.0\n  seed: 0 -> 7\nGive"):
        ResultsFile(path, make_stamp(sampling={"temperature": 1.0, "top_p": 0.95}, seed=7))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (make_result("q0", 1), "question 'q0' has its sample 1 already"),
        (make_result("q9", 3), "must be one of 3 samples"),
        (make_result("q9", benchmark="sums"), "must be one of 3 samples of 'riddles', but got sample 0 of 'sums'"),
    ],
    ids=["twice", "one sample too many", "another benchmark"],
)
def test_what_does_not_belong_into_a_file_is_refused(path, result, problem):
    with ResultsFile(path, make_stamp()) as file, pytest.raises(ValueError, match=problem):
        file.append(result)
    assert len(read_results(path).results) == 2


@pytest.mark.parametrize("num_left", [0, 1, 200, *range(500, 3500, 210)])
def test_a_file_that_was_cut_anywhere_goes_on(tmp_path, num_left, whole):
    path = results_path(tmp_path, "riddles")
    path.parent.mkdir()
    path.write_bytes(whole[:num_left])
    with ResultsFile(path, make_stamp()) as file:
        num_missing = len(file.missing(ASKED))
        for question_id, sample in file.missing(ASKED):
            file.append(make_result(question_id, sample))
    assert num_missing == 6 - max(whole[:num_left].count(b"\n") - 1, 0)
    assert {each.pair for each in read_results(path).results} == {(name, i) for name in ASKED for i in range(3)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What stands in a whole file of two questions."""
    folder = write_evaluation(tmp_path_factory.mktemp("whole"), make_results("101", "010"))
    return results_path(folder, "riddles").read_bytes()


def test_a_damaged_line_is_made_again_and_kept_beside(path, caplog):
    before = path.read_bytes()
    damaged = before.replace(b"what is q0?", b"what is q1?", 1)
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"riddles.jsonl, line 2: its checksum is wrong.*makes again"):
        read_results(path)
    with ResultsFile(path, make_stamp()) as file:
        assert file.missing(["q0"]) == [("q0", 0), ("q0", 2)]
    assert "1 lines cannot be used and their trajectories are made again (line 2: its checksum" in caplog.text
    assert path.with_name("riddles.jsonl.damaged-1").read_bytes() == damaged
    assert len(read_results(path).results) == 1
    assert [each.name for each in read_evaluation(path.parent.parent)] == ["riddles"]


def test_a_line_that_stands_twice_counts_once(path):
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[1])
    with pytest.raises(DataError, match="line 4: question 'q0' has its sample 0 already"):
        read_results(path)
    with ResultsFile(path, make_stamp()) as file:
        assert len(file.pairs) == 2
    assert len(read_results(path).results) == 2


def test_a_disk_that_is_full_in_the_middle_of_a_line_leaves_whole_lines(path):
    class Full:
        """Takes a few bytes, then none."""

        def __init__(self, file):
            self._file, self._is_full = file, False

        def __getattr__(self, name):
            return getattr(self._file, name)

        def write(self, content):
            if self._is_full:
                raise OSError(28, "No space left on device")
            self._is_full = True
            return self._file.write(content[:20])

    with ResultsFile(path, make_stamp()) as file:
        real = file._file
        file._file = Full(real)
        with pytest.raises(OSError, match="No space"):
            file.append(make_result("q1"))
        file._file = real
        file.append(make_result("q1"))
    assert len(read_results(path).results) == 3


def test_any_text_comes_back_from_a_file(tmp_path):
    text = "line\r\n\x00\ud800\u2028\x85\u202e\ufeff\x1b[2J" + "\U0001f600" * 1000
    result = make_result(response_text=text, answer=text, question=text, golds=(text, ""))
    write_evaluation(tmp_path, [result, make_result("q1")])
    found = read_results(results_path(tmp_path, "riddles")).results
    assert found == (result, make_result("q1"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "has no whole line"),
        (b'{"stamp": 1', "has no whole line"),
        (b'{"question": 1}\n', "line 1: a line must end in its checksum"),
        (b"\xff\xfe\n", "line 1: "),
    ],
)
def test_other_files_are_named(tmp_path, content, problem):
    path = tmp_path / "other.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem):
        read_results(path)


@pytest.mark.parametrize(("name", "found"), [("", "has no such file"), ("nowhere", "is no folder")])
def test_a_folder_without_results_is_no_evaluation(tmp_path, name, found):
    with pytest.raises(DataError, match=rf"must hold results/<benchmark>.jsonl, but .* {found}. Give the folder"):
        read_evaluation(tmp_path / name)


_WRITER = """
import sys
from pathlib import Path
from aepo_lightning.evaluation.results_file import ResultsFile
from tests.support.evaluated import make_result, make_stamp
with ResultsFile(Path(sys.argv[1]), make_stamp(num_samples=10**6)) as file:
    for sample in range(10**6):
        file.append(make_result(sample=sample))
        print(sample, flush=True)
"""


@pytest.mark.slow
def test_what_was_appended_outlives_a_kill(tmp_path):
    path = tmp_path / "riddles.jsonl"
    command, here = [sys.executable, "-c", _WRITER, path], Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=here) as process:
        said = [process.stdout.readline() for _ in range(20)]
        os.kill(process.pid, signal.SIGKILL)
        said += process.stdout.read().splitlines(keepends=True)
    last = max(int(line) for line in said if line.endswith("\n"))
    with ResultsFile(path, make_stamp(num_samples=10**6)) as file:
        assert {("q0", sample) for sample in range(last + 1)} <= file.pairs
        assert len(file.pairs) <= last + 2
