"""A run is told to end in each of its stages, and with everything that starts processes: it ends, and so do they."""

import os
import signal
import socket
import sys
from importlib.util import find_spec

import pytest

from tests.app.test_signals import STATED_S, hung
from tests.support.commands import Command
from tests.support.killed_runs import TINY, check_same, train, train_to_the_end
from tests.support.paths import ROOT
from tests.support.processes import descendants, is_running, wait_until

pytestmark = pytest.mark.slow

MODULE = "aepo_lightning.training.module:AEPOModule"
STAGES = {
    "evaluation before": (f"{MODULE}.validation_step", 1),
    "validation": (f"{MODULE}.validation_step", 2),
    "update": (f"{MODULE}.training_step", 5),
    "old log-probs": (f"{MODULE}.score", 6),
    "evaluation after": (f"{MODULE}.validation_step", 4),
    "export": ("aepo_lightning.app.stages:_export", 1),
}
PLAIN = [*(word for word in TINY if not word.startswith("coldstart")), "coldstart=none", "data.round_trip=false"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_to_the_end(folder)
    return folder


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("where", "count"), STAGES.values(), ids=STAGES)
def test_sigterm_in_any_stage_ends_the_run_which_goes_on_as_if_it_had_not_come(tmp_path, whole, where, count):
    point = {"where": where, "count": count, "number": int(signal.SIGTERM)}
    status, output = train(tmp_path / "run", kill=point)
    assert status == 128 + signal.SIGTERM, output[-3000:]
    assert output.count("SIGTERM: the run ends (exit status 143)") == 1
    assert not (tmp_path / "run" / "report.json").exists(), "it did not go on to its end"
    train_to_the_end(tmp_path / "run", "ckpt_path=last")
    check_same(tmp_path / "run", whole)


def told_to_end(job, is_there, number=signal.SIGTERM):
    """Wait until something is there, send a signal, and return the processes that the command had started."""
    wait_until(lambda: job.returncode is not None or is_there(), 200)
    assert job.returncode is None, job.stderr[-3000:]
    started = descendants(job.pid)
    os.kill(job.pid, number)
    job.wait(STATED_S)
    return started


def test_sigterm_in_the_cold_start_ends_the_run_which_trains_it_again(tmp_path, whole):
    folder = tmp_path / "run"
    job = Command("train.py", *TINY, f"run_dir={folder}")
    told_to_end(job, (folder / "coldstart_logs").exists)
    assert job.returncode == 128 + signal.SIGTERM
    assert not (folder / "coldstart" / "config.json").exists()
    train_to_the_end(folder, "ckpt_path=last")
    check_same(folder, whole)


SERVER = ROOT / "tests" / "support" / "mcp_example.py"
STARTERS = {
    "functions": ["+tools.power._target_=tests.support.plain_functions.power"],
    "jail": ["+tools.python._target_=aepo_lightning.tools.PythonTool"],
    "mcp": ["tools=mcp", f"tools.mcp.server.command=['{sys.executable}','{SERVER}']"],
    "vllm": [
        "engine=vllm",
        "model.architecture.head_dim=32",
        "engine.dtype=float32",
        "engine.kv_cache_memory_bytes=16777216",
        "publication_check=null",
    ],
}
NEEDS = {"mcp": "mcp", "vllm": "vllm"}


@pytest.mark.timeout(500)
@pytest.mark.parametrize("name", STARTERS)
@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_no_process_is_left_of_a_run_that_is_told_to_end(tmp_path, name, number):
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs {NEEDS[name]}")
    overrides = [*PLAIN, *hung(tmp_path, "async", 10), *STARTERS[name]]
    job = Command("train.py", f"run_dir={tmp_path / 'run'}", *overrides)
    started = told_to_end(job, (tmp_path / "async").exists, number)
    assert job.returncode == 128 + number
    assert started, "at least the process that looks whether the interpreter is held"
    wait_until(lambda: not any(map(is_running, started)), STATED_S)


WAITING_FOR_A_SERVER = """
from aepo_lightning.distributed.ranks import guarded_process
from aepo_lightning.engines.vllm_server.engine import VLLMServerEngine
from tests.support.vllm_parts import vllm_policy
with guarded_process():
    policy = vllm_policy()
    engine = VLLMServerEngine(policy, endpoints=["{url}"], max_model_len=64, ready_timeout_s=1000.0)
    print("ready", flush=True)
    engine.load_weights(policy.build_model().named_parameters(), 0)
"""


def test_sigterm_ends_a_run_that_waits_for_a_server_which_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        job = Command("-c", WAITING_FOR_A_SERVER.format(url=url))
        connection, _ = silent.accept()
        with connection:
            told_to_end(job, lambda: True)
    assert job.returncode == 128 + signal.SIGTERM
