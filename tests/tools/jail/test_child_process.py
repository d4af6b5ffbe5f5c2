"""One child process: its output, its end, and the end it is given."""

import asyncio
import os
import sys

import pytest

from aepo_lightning.tools.jail.child_process import ChildProcess


def run(code, *, max_output_bytes=1000, closes_early=False):
    async def drive():
        command = [sys.executable, "-I", "-c", code]
        with open("/dev/null", "rb") as nothing:
            child = ChildProcess(command, folder="/", stdin=nothing, max_output_bytes=max_output_bytes)
        try:
            if not closes_early:
                await child.wait()
        finally:
            await child.close()
        return child

    return asyncio.run(drive())


def test_output_and_exit_code_are_kept():
    child = run("import sys; print('out'); print('err', file=sys.stderr); sys.exit(5)")
    assert (child.stdout, child.stderr, child.exit_code) == (b"out\n", b"err\n", 5)


@pytest.mark.parametrize("num_bytes, is_flooded", [(99, False), (100, False), (101, True), (10**7, True)])
def test_one_byte_beyond_the_cap_is_a_flood(num_bytes, is_flooded):
    child = run(
        f"import os; data = b'x' * {num_bytes}\nwhile data: data = data[os.write(1, data):]", max_output_bytes=100
    )
    assert child.stdout == b"x" * min(num_bytes, 100)
    assert (child.is_stdout_flooded, child.is_stderr_flooded) == (is_flooded, False)


def test_closing_early_ends_the_process_by_a_signal():
    assert run("import time; time.sleep(60)", closes_early=True).exit_code == -15


def test_closing_ends_a_process_that_ignores_the_request():
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('x' * 2000, flush=True); time.sleep(60)"
    assert run(code).exit_code == -9


def test_an_ended_process_is_reaped():
    child = run("pass")
    assert isinstance(child.exit_code, int)
    with pytest.raises(ChildProcessError, match="No child processes"):
        os.waitpid(child._process.pid, 0)


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    assert run("print(open('/proc/self/environ').read())").stdout == b"\n"
