"""Python commands in processes of their own that start at once: forked from one that has imported what commands import.

That server is a fresh interpreter, so a command sees nothing of the test's process but the variables it is given. What
is read when Python starts (PYTHONHASHSEED) needs a real subprocess.
"""

import atexit
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

from tests.support.paths import ROOT

WARM = multiprocessing.get_context("forkserver")
"""Start processes of functions in it, too."""
WARM.set_forkserver_preload(
    # The first imports the others in a better way, where Python finds it: not below another working directory.
    ["tests.support.warm_imports", "aepo_lightning.app.replay", "transformers.models.qwen3", "aepo_lightning.tools"]
)


class Command:
    """What follows `python`: a file, `-m` and a module, or `-c` and a program, with its arguments."""

    def __init__(self, *words, env=None):
        folder = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, folder)
        self._outputs = [folder / name for name in ("stdout", "stderr")]
        variables = dict(os.environ if env is None else env)
        self._process = WARM.Process(target=_run, args=([str(word) for word in words], variables, self._outputs))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        """As `subprocess` has it: None while it runs, a negative signal where one ended it."""
        return self._process.exitcode

    @property
    def stdout(self):
        return self._outputs[0].read_text()

    @property
    def stderr(self):
        return self._outputs[1].read_text()

    def kill(self):
        self._process.kill()
        self._process.join()

    def wait(self, timeout=200):
        """Wait for its end; what does not end in time is killed, and the test fails."""
        self._process.join(timeout)
        if self._process.is_alive():
            self.kill()
            raise AssertionError(f"did not end within {timeout} s: {self.stderr[-3000:]}")
        return self


def run_command(*words, env=None, timeout=200) -> subprocess.CompletedProcess:
    command = Command(*words, env=env).wait(timeout)
    return subprocess.CompletedProcess(words, command.returncode, command.stdout, command.stderr)


def _run(words, variables, outputs):
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background may ignore it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(variables)
    try:
        _run_as_main(*words)
    finally:
        atexit._run_exitfuncs()  # a forked process leaves them out


def _run_as_main(first, *others):
    if first == "-m":
        sys.argv = list(others)
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *others[1:]]
        exec(compile(others[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [first, *others]
        runpy.run_path(first, run_name="__main__")
