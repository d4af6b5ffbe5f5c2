"""What the tests of the server pool share: a real server on loopback, and engines around servers."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from aepo_lightning.engines.vllm_server.engine import VLLMServerEngine
from tests.support.vllm_parts import vllm_policy

READY_S = 240
MAX_MODEL_LEN = 160


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def real_server(folder: Path, log: Path, max_model_len=MAX_MODEL_LEN, ready_s=READY_S):
    """Yield the address of a vLLM server with the model in `folder`, and a function that kills it."""
    port = free_port()
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-num-seqs", "16"]
    arguments += [
        "--max-model-len",
        str(max_model_len),
        "--kv-cache-memory-bytes",
        "16M",
        "--disable-uvicorn-access-log",
    ]
    command = [sys.executable, "-m", "aepo_lightning.engines.vllm_server.launch", str(folder), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)

    def kill():
        # The workers are in the session of the server, which is the group's leader.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)

    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process, log, ready_s)
        yield url, kill
    finally:
        kill()


_shared = []


def shared_server(request, folder):
    """Return the address of one real server for the whole test run, and a function that kills it."""
    if not _shared:
        policy = vllm_policy()
        policy.build_model().save_pretrained(folder / "model")
        policy.tokenizer.save_pretrained(folder / "model")
        stack = ExitStack()
        request.session.addfinalizer(stack.close)
        _shared.append(stack.enter_context(real_server(folder / "model", folder / "log")))
    return _shared[0]


def wait_until_ready(url, process, log, ready_s=READY_S):
    end = time.monotonic() + ready_s
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text()[-4000:]
            time.sleep(0.5)
    raise AssertionError(f"The server was not ready in {ready_s} s.\n{log.read_text()[-4000:]}")


def until(condition):
    """Wait for what another thread is about to do; the limit is for a bug, not a measurement."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def server_engine(*endpoints, policy=None, **settings):
    defaults = {"max_model_len": MAX_MODEL_LEN, "max_num_seqs": 16, "health_interval_s": 30.0}
    defaults |= {"ready_timeout_s": 0.0, "outage_timeout_s": 0.0}
    return VLLMServerEngine(policy or vllm_policy(), endpoints=list(endpoints), **(defaults | settings))
