"""What the command writes where there is a terminal and where there is none."""

import os
import pty
import subprocess
import sys
import termios

import pytest

from tests.support.paths import ROOT

SMALL = [
    "coldstart.num_steps=12",
    "coldstart.batch_size=4",
    "data.questions_per_iteration=2",
    "data.num_val_questions=2",
    "experience.questions_per_step=2",
    "trainer.max_epochs=2",
    "algorithm.budget=4",
    "model.architecture.num_hidden_layers=1",
]


# Of two processes, the first alone writes: no row of the table, and no line of the log, stands there twice.
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [[], ["trainer.devices=2", "strategy=ddp"]], ids=["one process", "two processes"])
def test_a_file_gets_a_page_of_plain_lines(tmp_path, ranks):
    path = tmp_path / "output.txt"
    with path.open("w") as file:
        command = [sys.executable, "train.py", *SMALL, *ranks, f"run_dir={tmp_path / 'run'}"]
        subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=200, check=True)
    text = path.read_text()
    assert "\r" not in text
    assert len(text) < 8000
    assert "step 12 of 12: coldstart/loss" in text
    assert "validation_step" not in text
    rows = [line for line in text.splitlines() if line.startswith(("stage", "train ", "held out"))]
    assert rows[0].split() == ["stage", "iteration", "reward", "pass@1", "entropy", "loss", "seconds"]
    lines = text.splitlines()
    assert len(lines) == len(set(lines))
    for once in ("Round trip of a perfect answer", "Packed batches (tree)", "The first step trains on", "TensorBoard "):
        assert text.count(once) == 1
    stages = [(row[:9].strip(), row[9:19].strip()) for row in rows[1:]]
    assert stages == [("held out", "0"), ("train", "0"), ("train", "1"), ("held out", "2")]


@pytest.mark.slow
def test_a_terminal_gets_bars(tmp_path):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 120))  # a bar has no room where nobody knows how wide the terminal is
    command = [sys.executable, "train.py", *SMALL, f"run_dir={tmp_path / 'run'}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL) as process:
        os.close(theirs)
        text = _read(ours)
    assert process.returncode == 0, text
    assert "\r" in text
    assert "Epoch 0: 100%" in text
    assert "rollout train-00001" in text


def _read(descriptor):
    parts = []
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # the other end is closed
            part = b""
        if not part:
            os.close(descriptor)
            return b"".join(parts).decode(errors="replace")
        parts.append(part)
