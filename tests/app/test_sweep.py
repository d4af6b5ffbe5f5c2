"""Every job of a sweep has a process, a folder and a row of its own."""

import json
import os
import signal
import subprocess
import sys

import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf
from rich.console import Console

from aepo_lightning.app import sweep
from aepo_lightning.app.sweep import Sweep
from aepo_lightning.app.words import parse, plain_words
from aepo_lightning.errors import ConfigError
from tests.support.commands import run_command
from tests.support.paths import ROOT

WORDS = ["-m", "seed=0,1", "lr=3", "--config-dir", "mine"]


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    for name in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "WORLD_SIZE", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)


@pytest.fixture
def run_job(monkeypatch, tmp_path):
    """Run one job as Hydra does, with a program of the test in place of the command."""

    def run(its, number, program="pass", run_dir=None, ckpt_path=None):
        hydra = {"job": {"num": number}, "overrides": {"task": [f"seed={number}", "lr=3"]}}
        monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: OmegaConf.create(hydra)))
        monkeypatch.setattr(Sweep, "_command", lambda _, job: [sys.executable, "-c", program, str(job.folder)])
        cfg = {"name": "x", "output_root": str(tmp_path), "run_dir": run_dir, "ckpt_path": ckpt_path, "seed": number}
        its.run(OmegaConf.create(cfg))
        return its.jobs[-1]

    return run


def report(folder, before, after):
    figures = {"before": {"val/pass@1": before}, "after": {"val/pass@1": after}}
    (folder / "report.json").write_text(json.dumps(figures))


def shown(its):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(its.table())
    return capture.get()


def test_jobs_get_folders_and_rows_and_one_that_fails_does_not_end_the_others(run_job):
    its = Sweep(WORDS)
    first, second, third = (run_job(its, number, f"raise SystemExit({number % 2})") for number in range(3))
    assert len({job.folder for job in its.jobs}) == 3
    assert [job.folder.name[-2:] for job in its.jobs] == ["_0", "_1", "_2"]
    report(first.folder, 0.25, 0.75)
    assert its.is_failed
    rows = [line for line in shown(its).splitlines() if "seed=" in line]
    assert [cell.strip() for cell in rows[0].split("│")[1:6]] == ["0", "x", "seed=0", "0.250", "0.750"]
    assert "failed, exit status 1" in rows[1]
    assert str(third.folder) in rows[2]
    assert second.status == 1


@pytest.mark.parametrize(
    ("run_dir", "words", "names"),
    [
        ("s", ["seed=0,1"], ["s/0", "s/1"]),
        ("s${seed}", ["seed=0,1", "run_dir=s${seed}"], ["s0", "s1"]),
        ("s", ["run_dir=s,t"], ["s", "s"]),
    ],
    ids=["root", "interpolated", "swept"],
)
def test_a_folder_that_is_given_is_above_those_of_the_jobs(run_job, tmp_path, monkeypatch, run_dir, words, names):
    monkeypatch.chdir(tmp_path)
    its = Sweep(["-m", *words])
    assert [str(run_job(its, number, run_dir=run_dir, ckpt_path="last").folder) for number in (0, 1)] == names


def test_the_last_run_is_not_that_of_every_job(run_job):
    with pytest.raises(ConfigError, match="`ckpt_path` must not be 'last' in a sweep without `run_dir`"):
        run_job(Sweep(WORDS), 0, ckpt_path="last")


def test_a_job_without_a_folder_is_a_row(run_job, tmp_path):
    (tmp_path / "file").touch()
    its = Sweep(WORDS)
    run_job(its, 0, run_dir=str(tmp_path / "file"))
    assert its.is_failed
    assert "must be a path that can be" in " ".join(shown(its).split())


def test_the_command_of_a_job_is_that_of_the_sweep_with_its_own_values(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    job = sweep.SweepJob(number=3, name="x", overrides=["seed=3", "run_dir=a"], folder=tmp_path / "it's")
    words = Sweep([*WORDS, "hydra.verbose=true", "hydra.sweep.dir=x"])._command(job)
    assert words[:5] == [sys.executable, "train.py", "--config-dir", "mine", "seed=3"]
    assert words[5] == "hydra.verbose=true"
    assert parse(words[6]).value() == str(tmp_path / "it's")
    assert words[7:] == ["hydra.job.num=3", "hydra.job.id=3"]


@pytest.mark.parametrize(("words", "is_sweep"), [(["-m"], True), (["hydra.mode=MULTIRUN"], True), (["seed=1"], False)])
def test_a_sweep_is_known_by_its_words(words, is_sweep):
    assert Sweep.is_asked_for(words) is is_sweep


@pytest.mark.parametrize(
    "words", [["-m", "seed=0,1"], ["seed=0,1", "-m"], ["lr=3", "-m", "seed=0,1", "--config-dir", "mine"]]
)
def test_what_hydra_writes_goes_to_a_folder_that_is_named_where_hydra_reads_it(words, tmp_path):
    found = Sweep(plain_words(words)).words_with_folder(tmp_path)
    flags = get_args_parser().parse_args(found)
    assert flags.multirun
    assert [parse(word).value() for word in flags.overrides if word.startswith("hydra.")] == [str(tmp_path)]
    assert "seed=0,1" in flags.overrides
    assert Sweep(["-m", "hydra.sweep.dir=x"]).words_with_folder(tmp_path) == ["-m", "hydra.sweep.dir=x"]


def test_a_termination_ends_the_job_before_the_sweep(tmp_path):
    program = "import signal, time; signal.signal(15, lambda *_: exit(7)); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(SystemExit) as ended, sweep._passing_on_termination(process):
            os.kill(os.getpid(), signal.SIGTERM)
        assert process.wait() == 7
    assert ended.value.code == 128 + signal.SIGTERM


@pytest.mark.slow
def test_a_sweep_trains_each_seed_in_a_folder_of_its_own_and_ends_with_a_table(tmp_path):
    small = [
        *("coldstart.num_steps=3", "coldstart.batch_size=4", "data.questions_per_iteration=2"),
        *("data.num_val_questions=2", "experience.questions_per_step=2", "trainer.max_epochs=1"),
        *("algorithm.budget=2", "model.architecture.num_hidden_layers=1"),
    ]
    done = run_command("train.py", "-m", "seed=0,1", *small, f"output_root={tmp_path}", "name=x")
    assert done.returncode == 0, done.stderr
    folders = sorted((tmp_path / "x").iterdir())
    assert [folder.name[-2:] for folder in folders] == ["_0", "_1"]
    weights = [(folder / "coldstart" / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] != weights[1]
    assert all(str(folder) in done.stdout[done.stdout.index("2 jobs, val/pass@1") :] for folder in folders)
    assert [OmegaConf.load(folder / "config.yaml").seed for folder in folders] == [0, 1]
    assert not (ROOT / "multirun.yaml").exists()
