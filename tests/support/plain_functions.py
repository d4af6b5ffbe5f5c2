"""Functions that are called in other processes, which import nothing for them but the standard library."""

import os
import random
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

CALLS = []
COUNT = 0


def power(base: int, exponent: int) -> str:
    """Raise a number to a power."""
    return str((base**exponent) % 1000)


def match(pattern: str, text: str) -> str:
    """Look for a pattern."""
    return str(bool(re.search(pattern, text)))


class QuotaError(ConnectionError):
    """Of a server that nobody else knows."""


def _raise(error):
    raise error


def _loop():
    while True:
        pass


_WAYS = {
    "exit": lambda: os._exit(3),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "leave": lambda: _raise(SystemExit(2)),
    "interrupt": lambda: _raise(KeyboardInterrupt()),
    "key": lambda: _raise(KeyError("k")),
    "decode": lambda: b"\xff".decode(),
    "own": lambda: _raise(QuotaError("no quota left")),
    "sleep": lambda: time.sleep(60),
    "loop": _loop,
    "hold": lambda: re.match(r"(a+)+$", "a" * 60 + "b"),
    "lock": threading.Lock,
    "big": lambda: "x" * 3_000_000,
    "none": lambda: None,
    "number": lambda: 7,
}


def misbehave(how: str) -> object:
    """Do something that no tool should."""
    return _WAYS[how]()


def spawn(path: str) -> str:
    """Start a program that goes on, and hang."""
    program = subprocess.Popen(["sleep", "600"])
    Path(path).write_text(str(program.pid))
    return str(program.wait())


def spawn_apart(path: str) -> str:
    """Start a program in a session of its own, and hang."""
    program = subprocess.Popen(["sleep", "600"], start_new_session=True)
    Path(path).write_text(str(program.pid))
    return str(program.wait())


def draw(text: str) -> str:
    """Draw a random number."""
    return f"{text} {random.random()}"


def chain(text: str, context) -> str:
    """Name the chain."""
    return f"{text} {context.question.question_id} {context.call_index}"


def where(text: str) -> str:
    """Tell the process."""
    return f"{os.getpid()}"


def append(text: str) -> str:
    """Keep what came."""
    CALLS.append(text)
    return str(len(CALLS))


def count(text: str) -> str:
    """Count calls."""
    global COUNT
    COUNT += 1
    return str(COUNT)


def look_up(text: str) -> str:
    """Look a word up."""
    return {"a": "b"}.get(text, "")


def plain(a: int) -> str:
    """Count on.

    Args:
        a: From here.
    """
    return str(a + 1)


async def awaited(a: int) -> str:
    """Count on.

    Args:
        a: From here.
    """
    return str(a + 1)


def give_back(value):
    """Answer what came."""
    return value


def is_in_main_thread():
    """Tell where it runs."""
    return threading.current_thread() is threading.main_thread()


def score(given):
    """Do what the response says, and name the process."""
    if given.response_text in _WAYS:
        return _WAYS[given.response_text]()
    return os.getpid() if given.response_text == "pid" else is_in_main_thread()
