"""Two nodes played on this machine: the command under torchrun and under what srun sets, and the launch files."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from aepo_lightning.app.command import explain_bad_overrides
from tests.app.test_train_command import SMALL
from tests.support.paths import ROOT
from tests.support.ranks import _free_port

LAUNCH = ROOT / "examples" / "launch"
TWO_NODES = [
    *SMALL,
    "strategy=fsdp",
    "trainer.num_nodes=2",
    "trainer.devices=1",
    "++callbacks.rank_guard._target_=aepo_lightning.callbacks.RankGuard",
]
QUICK_TWO_NODES = [*(each for each in TWO_NODES if not each.startswith("coldstart")), "coldstart=none"]
LIMIT_S = 200


def clean_environment():
    names = ("SLURM_", "TORCHELASTIC_", "AEPO_RUN_DIR", "MASTER_", "RANK", "LOCAL_RANK", "WORLD_SIZE")
    return {name: value for name, value in os.environ.items() if not name.startswith(names)}


def torchrun(node, port, overrides):
    """The agent of one node, which starts one rank."""
    own = ["--nnodes", "2", "--nproc-per-node", "1", "--node-rank", node, "--rdzv-id", "7", "--rdzv-backend", "c10d"]
    command = [sys.executable, "-m", "torch.distributed.run", *own, "--rdzv-endpoint", f"127.0.0.1:{port}"]
    return [*command, "train.py", *overrides], clean_environment()


def srun(node, port, overrides):
    """The task of one node, with the variables that srun sets."""
    variables = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "aepo",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "2",
        "SLURM_PROCID": node,
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": node,
        "SLURM_NODELIST": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [sys.executable, "train.py", *overrides], clean_environment() | variables


def run_both(folder, launcher, overrides):
    """Start both nodes and wait for them; return what each printed."""
    port = _free_port()
    nodes = []
    for node in ("0", "1"):
        command, environment = launcher(node, port, overrides)
        path = folder / f"node{node}.txt"
        with path.open("w") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        nodes.append((process, path))
    deadline = time.monotonic() + LIMIT_S
    while any(process.poll() is None for process, _ in nodes) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process, _ in nodes:
        process.terminate()
        process.wait()
    return [path.read_text() for _, path in nodes], [process.returncode for process, _ in nodes]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("launcher", [torchrun, srun])
def test_two_nodes_go_through_all_stages_in_one_folder(tmp_path, launcher):
    outputs, statuses = run_both(tmp_path, launcher, [*TWO_NODES, f"output_root={tmp_path}", "name=x"])
    assert statuses == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    assert [output.count("all stages (s)") for output in outputs] == [1, 0]
    (folder,) = (tmp_path / "x").iterdir()
    assert folder.name == "job-7"
    report = json.loads((folder / "report.json").read_text())
    assert 0 <= report["training"]["publication/logprob_gap"] < 1e-4
    names = sorted(path.name for path in (folder / "rollouts").glob("*.jsonl"))
    assert names == [f"train-0000{epoch}-rank{rank}.jsonl" for epoch in (0, 1) for rank in (0, 1)]
    assert (folder / "policy" / "model.safetensors").is_file()
    assert "stops" not in "".join(outputs)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_that_fails_on_one_node_ends_the_other_node_with_its_error(tmp_path):
    fault = {"_target_": "tests.support.faults.FaultyStep", "rank": 1, "how": "bug", "mark": tmp_path / "mark"}
    overrides = [*QUICK_TWO_NODES, *(f"++callbacks.fault.{name}={value}" for name, value in fault.items())]
    outputs, statuses = run_both(tmp_path, srun, [*overrides, f"output_root={tmp_path}", "name=x"])
    assert statuses == [1, 1]
    assert "faults.py" in outputs[1]
    assert "because rank 1 cannot go on" in outputs[0]
    assert "a bug of one rank only" in outputs[0]


# What the launch files call, instead of the real thing: each call is one line of words.
RECORDER = """#!/usr/bin/env bash
# Trainers come after the servers, which run beside them.
while [[ "$*" == *vllm_server* && "$*" == *train.py* ]] && ! grep -q vllm_server.launch "$RECORD"; do sleep 0.05; done
{ printf '%s' "$(basename "$0")"; printf '\\t%s' "$@"; printf '\\n'; } >> "$RECORD"
"""
HOSTNAMES = """#!/usr/bin/env bash
printf 'node%s\\n' 1 2 3
"""
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_SUBMIT_DIR": str(ROOT),
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NTASKS_PER_NODE": "8",
    "SLURM_JOB_NODELIST": "node[1-3]",
}
FILES = sorted(path.name for path in LAUNCH.iterdir())


def run_file(folder, name, *words, **variables):
    """Run a launch file and return the calls that it makes, as lists of words."""
    for program in ("srun", "torchrun"):
        (folder / program).write_text(RECORDER)
    (folder / "scontrol").write_text(HOSTNAMES)
    for path in folder.iterdir():
        path.chmod(0o755)
    record = folder / "record"
    environment = clean_environment() | {"PATH": f"{folder}:{os.environ['PATH']}", "RECORD": str(record)} | variables
    subprocess.run(["bash", LAUNCH / name, *words], env=environment, check=True, timeout=30, capture_output=True)
    return [line.split("\t") for line in record.read_text().splitlines()]


def overrides_of(call):
    return call[call.index("train.py") + 1 :]


@pytest.mark.parametrize("name", FILES)
def test_launch_files_are_sound_bash(name):
    subprocess.run(["bash", "-n", LAUNCH / name], check=True, timeout=30)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", LAUNCH / name], check=True, timeout=30)


def test_the_torchrun_file_starts_a_job_that_composes(tmp_path):
    (call,) = run_file(tmp_path, "torchrun.sh", "+experiment=aepo_qwen3_14b", HEAD_NODE="node1", JOB_ID="run")
    assert call[0] == "torchrun"
    assert call[call.index("--rdzv-endpoint") + 1] == "node1:29400"
    assert {"trainer.num_nodes=2", "trainer.devices=8", "+experiment=aepo_qwen3_14b"} <= set(overrides_of(call))
    assert explain_bad_overrides(overrides_of(call)) is None


@pytest.mark.parametrize("restarts", ["0", "1"])
def test_the_slurm_file_starts_a_job_that_composes_and_continues_after_a_requeue(tmp_path, restarts):
    variables = SLURM | {"SLURM_RESTART_COUNT": restarts}
    (call,) = run_file(tmp_path, "slurm.sbatch", "+experiment=aepo_qwen3_14b", **variables)
    assert call[:2] == ["srun", "--kill-on-bad-exit=1"]
    assert {"trainer.num_nodes=2", "trainer.devices=8"} <= set(overrides_of(call))
    assert ("ckpt_path=last" in overrides_of(call)) == (restarts == "1")
    assert explain_bad_overrides(overrides_of(call)) is None


def test_the_pool_file_gives_each_node_its_part(tmp_path):
    weights = tmp_path / "weights"
    variables = SLURM | {"MODEL": "some/model", "WEIGHTS_DIR": str(weights)}
    calls = run_file(tmp_path, "slurm_pool.sbatch", "+experiment=aepo_qwen3_14b", **variables)
    (servers,) = [call for call in calls if "aepo_lightning.engines.vllm_server.launch" in call]
    (trainers,) = [call for call in calls if "train.py" in call]
    assert "--nodelist=node1" in servers
    assert "--nodelist=node2,node3" in trainers
    assert trainers[trainers.index("--rdzv-endpoint") + 1] == "node2:29400"
    found = overrides_of(trainers)
    expected = {"engine.endpoints=[http://node1:8000]", "trainer.num_nodes=2", f"engine.weights_dir={weights}"}
    assert expected <= set(found)
    assert explain_bad_overrides(found) is None
    assert weights.is_dir()
