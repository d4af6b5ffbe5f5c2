"""`aepo-eval RUN` gives what training printed to the last digit, goes on after a kill, and replays."""

import json
import shutil
import time

import pytest

from aepo_lightning.app.evaluation.command import main
from aepo_lightning.app.evaluation.own_command import evaluate_own, unequal
from aepo_lightning.app.evaluation.own_questions import printed_by_training
from aepo_lightning.app.evaluation.replay import replay_evaluation
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.results_file import read_evaluation
from tests.support.commands import Command, run_command

SMALL = [
    *("coldstart.num_steps=60", "coldstart.batch_size=16", "data.questions_per_iteration=4", "num_threads=1"),
    *("data.num_val_questions=6", "data.val_chunk_size=4", "experience.questions_per_step=2"),
    *("trainer.max_epochs=2", "trainer.check_val_every_n_epoch=10", "callbacks.checkpoint.every_n_epochs=1"),
    *("algorithm.budget=4", "model.architecture.num_hidden_layers=1"),
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run, `quick/run`."""
    folder = tmp_path_factory.mktemp("runs") / "quick" / "run"
    done = run_command("train.py", *SMALL, f"run_dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def test_every_figure_is_what_training_printed_to_the_last_digit(run, tmp_path, capsys):
    main([str(run), f"output_root={tmp_path}"])
    assert "Every figure is what training printed, to the last digit." in capsys.readouterr().out
    target = tmp_path / "quick-run"
    found = json.loads((target / "held_out.json").read_text())
    printed = printed_by_training(run)
    assert len(printed) > 30
    assert found.keys() == printed.keys()
    assert unequal(found, printed) == []
    (kept,) = read_evaluation(target)
    assert (len(kept.results), kept.stamp.num_questions) == (24, 6)


def test_it_replays_from_its_journal_where_the_run_has_moved_to(run, tmp_path):
    moved = shutil.copytree(run, tmp_path / "elsewhere" / "run")
    evaluate_own(str(run), [f"output_root={tmp_path}"])
    assert [each.difference for each in replay_evaluation(tmp_path / "quick-run", str(moved))] == [None] * 6


def test_a_checkpoint_and_other_settings_are_evaluations_of_their_own(run, tmp_path):
    first = run / "checkpoints" / "iteration0000.ckpt"
    evaluate_own(str(first), ["evaluation.num_samples=2", f"output_root={tmp_path}"])
    (kept,) = read_evaluation(tmp_path / "quick-run-iteration0000")
    assert (kept.stamp.num_samples, len(kept.results)) == (2, 12)
    with pytest.raises(ConfigError, match=r"num_samples: 2 -> 4"):
        evaluate_own(str(first), [f"output_root={tmp_path}"])


def test_an_evaluation_that_is_killed_goes_on_where_it_was(run, tmp_path):
    command = ["-m", "aepo_lightning.app.evaluation.command", run, f"output_root={tmp_path}"]
    journal = tmp_path / "quick-run" / "rollouts" / "held_out-00000.steps.jsonl"
    process, deadline = Command(*command), time.monotonic() + 100
    while process.returncode is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    done = run_command(*command)
    assert done.returncode == 0, done.stderr
    found, printed = json.loads((tmp_path / "quick-run" / "held_out.json").read_text()), printed_by_training(run)
    # What grew in other batches has other last bits in the engine's entropies, and fewer cached tokens.
    rounded = {name for name in printed if name.startswith("val/entropy")}
    assert {name: found[name] for name in rounded} == pytest.approx({name: printed[name] for name in rounded}, rel=1e-4)
    rounded |= {"val/prefix_cache_hit_fraction", "val/high_entropy_fraction"}
    assert set(unequal(found, printed)) <= rounded | {"val/consecutive_high_entropy_fraction"}
