"""Commands speak UTF-8 whatever the locale of the machine says."""

import locale
import os
import subprocess
import sys

import pytest

from aepo_lightning.app.command import speak_utf8
from tests.support.paths import ROOT


@pytest.fixture
def starts(monkeypatch):
    """The words with which Python was started again, and its variable."""
    found = []
    monkeypatch.setattr(os, "execv", lambda program, words: found.append((program, words, os.environ["PYTHONUTF8"])))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "train.py", "name=中文"])
    monkeypatch.delenv("PYTHONUTF8", raising=False)
    return found


@pytest.mark.parametrize("encoding", ["ANSI_X3.4-1968", "ISO-8859-1"])
def test_under_another_encoding_the_command_starts_again_once(monkeypatch, starts, encoding):
    monkeypatch.setattr(locale, "getpreferredencoding", lambda _: encoding)
    speak_utf8()
    assert starts == [(sys.executable, [sys.executable, "-X", "dev", "train.py", "name=中文"], "1")]
    speak_utf8()
    assert len(starts) == 1


def test_under_utf8_it_goes_on(monkeypatch, starts):
    monkeypatch.setattr(locale, "getpreferredencoding", lambda _: "UTF-8")
    speak_utf8()
    assert starts == []


@pytest.mark.slow
def test_names_in_any_script_go_through_a_whole_run_in_an_ascii_locale(tmp_path):
    small = [
        *("coldstart.num_steps=3", "coldstart.batch_size=4", "data.questions_per_iteration=2"),
        *("data.num_val_questions=2", "experience.questions_per_step=2", "trainer.max_epochs=1"),
        *("algorithm.budget=2", "model.architecture.num_hidden_layers=1"),
    ]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "train.py", *small, f"output_root={tmp_path}/ö", "name=中文"],
        cwd=ROOT,
        env=os.environ | ascii_only,
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "ö" / "中文").iterdir()
    assert (folder / "report.json").is_file()
    assert list((folder / "tensorboard").iterdir())
    assert "name: 中文" in (folder / "config.yaml").read_text(encoding="utf-8")
