"""Many runs from one cold start: what a run left as RUN/coldstart begins the next."""

import json

import pytest

from tests.support.commands import Command
from tests.support.paths import ROOT

SMALL = (
    *("+experiment=stability", "algorithm.budget=2", "data.questions_per_iteration=2", "experience.num_epochs=1"),
    *("data.num_val_questions=0", "trainer.max_epochs=1", "rollout.sampling.max_response_tokens=24"),
    *("coldstart.scheduler.num_warmup_steps=1", "coldstart.scheduler.num_decay_steps=1", "coldstart.batch_size=2"),
)


def first_rollouts(folder, *words):
    command = Command(ROOT / "train.py", *SMALL, f"run_dir={folder}", *words).wait()
    assert command.returncode == 0, command.stderr[-3000:]
    lines = (folder / "rollouts" / "train-00000-rank0.jsonl").read_text().splitlines()
    return [segment["token_ids"] for line in lines for segment in json.loads(line).get("segments", ())]


@pytest.mark.slow
def test_a_run_from_a_saved_cold_start_rolls_out_what_the_run_that_made_it_did(tmp_path):
    made = first_rollouts(tmp_path / "made", "coldstart.num_steps=2")
    saved = f"model.name_or_path={tmp_path / 'made' / 'coldstart'}"
    again = first_rollouts(tmp_path / "again", "model=tiny_saved", saved, "coldstart.num_steps=0")
    assert made
    assert made == again
    assert not (tmp_path / "again" / "coldstart").exists()
