"""Runs of the guard's benchmark are made once, and anew where they were interrupted."""

import subprocess

from benchmarks.support.guard_runs import cold_start


def test_a_run_is_made_once_and_anew_where_it_was_interrupted(tmp_path, monkeypatch):
    made = []

    def train(command, **_):
        (folder,) = (tmp_path / word.rpartition("/")[2] for word in command if word.startswith("run_dir="))
        made.append([path.name for path in folder.glob("*")])
        folder.mkdir(exist_ok=True)
        (folder / ("report.json" if len(made) > 1 else "config.yaml")).touch()

    monkeypatch.setattr(subprocess, "run", train)
    for _ in range(3):
        assert cold_start(tmp_path, 7) == tmp_path / "cold-7" / "coldstart"
    assert made == [[], []]
