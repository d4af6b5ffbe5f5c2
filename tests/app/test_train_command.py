"""The command on two CPU processes: FSDP2, an engine on each rank, one run folder, one table."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.support.paths import ROOT

SMALL = [
    "coldstart.num_steps=3",
    "coldstart.batch_size=4",
    "data.questions_per_iteration=4",
    "data.num_val_questions=2",
    "experience.questions_per_step=2",
    "trainer.max_epochs=2",
    "trainer.check_val_every_n_epoch=1",
    "algorithm.budget=4",
    "model.architecture.num_hidden_layers=1",
    "publication_check.max_logprob_gap=0.0001",
    "num_threads=1",
]
NEEDS_VLLM = pytest.mark.skipif(find_spec("vllm") is None, reason="needs the `vllm` extra")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=NEEDS_VLLM)])
def test_two_fsdp_ranks_go_through_all_stages_with_an_engine_each(tmp_path, engine):
    extra = ["engine.dtype=float32", "engine.kv_cache_memory_bytes=16777216"] if engine == "vllm" else []
    command = [sys.executable, "train.py", *SMALL, "strategy=fsdp", "trainer.devices=2", f"engine={engine}", *extra]
    done = subprocess.run(
        [*command, f"run_dir={tmp_path / 'run'}"], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("all stages (s)") == 1
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert 0 <= report["training"]["publication/logprob_gap"] < 1e-4
    names = sorted(path.name for path in (tmp_path / "run" / "rollouts").glob("*.jsonl"))
    assert names == [f"train-0000{epoch}-rank{rank}.jsonl" for epoch in (0, 1) for rank in (0, 1)]
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()
