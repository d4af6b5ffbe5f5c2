"""Processes that answer one JSON line with another, often in an interpreter of another environment."""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any


class Peer:
    """A script that says `ready` and then answers every line on its standard input."""

    def __init__(self, python: str, script: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the script, which lies next to this file, and wait until it is ready.

        Args:
            python: The interpreter.
            script: Name of the file.
            arguments: What the script is called with.
            environment: All of its environment variables.
        """
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- open as long as the process
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name(script)), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=dict(environment),
        )
        self._read("ready")

    def __call__(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a job."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(dict(job)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        found: dict[str, Any] = json.loads(self._read("{"))
        return found

    def __enter__(self) -> "Peer":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        assert self._process.stdin is not None
        if kind is None:
            self._process.stdin.close()
        else:
            self._process.kill()
        self._process.wait()
        self._errors.close()

    def _read(self, start: str) -> str:
        """Return the next line that begins so; libraries print others."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(start):
                return line
        raise self._failure()

    def _failure(self) -> RuntimeError:
        status = self._process.wait()
        self._errors.seek(0)
        return RuntimeError(f"A side of the comparison ended with {status}:\n{self._errors.read()[-3000:]}")
