"""`python train.py model=smollm2`: a pretrained model goes through the stages, in memory that the plan has named."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from aepo_lightning.app.plan import make_plan, plan_input
from tests.support.composed import composed
from tests.support.paths import ROOT
from tests.support.smollm2 import FOLDER, needs_smollm2

pytestmark = [pytest.mark.slow, needs_smollm2]

NEEDS_VLLM = pytest.mark.skipif(find_spec("vllm") is None, reason="needs the `vllm` extra")
SETTINGS = (
    "model=smollm2",
    f"model.name_or_path={FOLDER}",
    "num_threads=1",
    "coldstart.num_steps=2",
    "coldstart.batch_size=2",
    "coldstart.scheduler.num_warmup_steps=0",
    "coldstart.scheduler.num_decay_steps=1",
    "data.questions_per_iteration=2",
    "data.num_val_questions=2",
    "experience.questions_per_step=2",
    "algorithm.budget=4",
    "evaluation.num_samples=1",
    "evaluation.pass_at=[1]",
    "rollout.sampling.max_response_tokens=32",
    "trainer.max_epochs=1",
)


def run(folder, overrides):
    """Run the command; return its output and the largest memory that it had, in bytes."""
    command = [sys.executable, ROOT / "train.py", *overrides, f"run_dir={folder / 'run'}"]
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        return process.returncode, output.read(), 1024 * usage.ru_maxrss


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=NEEDS_VLLM)])
def test_a_pretrained_model_goes_through_the_stages_in_the_planned_memory(tmp_path, engine):
    overrides = (*SETTINGS, f"engine={engine}")
    planned = make_plan(plan_input(composed(*overrides))).peak_bytes
    code, output, peak_bytes = run(tmp_path, overrides)
    assert code == 0, output[-3000:]
    assert peak_bytes < planned
    before = json.loads((tmp_path / "run" / "evaluation_before.json").read_text())
    assert before["val/pass@1"] >= 0
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()
