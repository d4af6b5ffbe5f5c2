"""A trainer that somebody builds in Python ends by SIGTERM, whatever its rollouts wait for."""

import os
import signal
import time

import pytest

from tests.support.commands import Command

SCRIPT = """
import asyncio, signal, sys, time
from pathlib import Path
from tests.support.training import make_run
{before}
run = make_run(Path(sys.argv[1]))
engine = run.datamodule.engine

async def hang(*_):
    print("ready", flush=True)
    await {wait}

engine.generate = hang
run.fit()
"""


def start(tmp_path, wait="asyncio.Event().wait()", before=""):
    job = Command("-c", SCRIPT.format(wait=wait, before=before), tmp_path)
    end = time.monotonic() + 60
    while "ready" not in (job.stdout if job._outputs[0].exists() else ""):
        assert job.returncode is None, job.stderr
        assert time.monotonic() < end
        time.sleep(0.01)
    return job


@pytest.mark.parametrize(
    "wait", ["asyncio.Event().wait()", pytest.param("asyncio.to_thread(time.sleep, 1000)", marks=pytest.mark.slow)]
)
def test_sigterm_ends_a_trainer_whose_engine_hangs(tmp_path, wait):
    job = start(tmp_path, wait)
    os.kill(job.pid, signal.SIGTERM)
    assert job.wait(60).returncode == 128 + signal.SIGTERM
    assert "SIGTERM: the run ends" in job.stderr


def test_a_handler_of_somebody_else_is_left_alone(tmp_path):
    before = "signal.signal(signal.SIGTERM, lambda *_: print('theirs', flush=True))"
    job = start(tmp_path, before=before)
    os.kill(job.pid, signal.SIGTERM)
    end = time.monotonic() + 60
    while "theirs" not in job.stdout:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert "the run ends" not in job.stderr
    job.kill()
