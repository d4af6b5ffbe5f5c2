import io
import logging
import sys
from queue import Queue

import pytest

from aepo_lightning.rollout import progress
from aepo_lightning.rollout.progress import rollout_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(num_questions=3, **options):
    with rollout_progress("train-00000", num_questions, **options) as count:
        for _ in range(num_questions):
            count()


@pytest.fixture
def file(monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr(sys, "stderr", output)
    return output


def test_a_terminal_gets_a_bar_and_the_log_nothing(monkeypatch, caplog):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO):
        run()
    assert "rollout train-00000" in terminal.getvalue()
    assert not caplog.records


def test_a_file_gets_no_bar(file):
    run()
    assert file.getvalue() == ""


def test_a_long_rollout_says_how_far_it_is(monkeypatch, caplog, file):
    monkeypatch.setattr(progress, "_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO):
        run()
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        f"Rollout train-00000: {n} of 3 questions" for n in (1, 2, 3)
    ]


def test_a_rollout_in_which_no_question_is_finished_says_so(monkeypatch, file):
    said = Queue()
    monkeypatch.setattr(progress, "_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "_LOOK_S", 0.001)
    monkeypatch.setattr(progress.logger, "info", lambda text, *values: said.put(text % values))
    with rollout_progress("train-00000", 2):
        assert said.get(timeout=60).startswith("Rollout train-00000: 0 of 2 questions, ")


def test_a_short_one_says_nothing(caplog, file):
    with caplog.at_level(logging.INFO):
        run()
    assert not caplog.records


def test_other_ranks_say_nothing(monkeypatch, caplog):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO):
        run(is_shown=False)
    assert terminal.getvalue() == ""
    assert not caplog.records
