"""A process beside this one that ends it where no signal is heard, because some code holds the interpreter.

Such code (a regular expression that backtracks, in a reward that runs in a thread) keeps every thread of this process
from running, the one that listens to signals too. The kernel's note of the signal then stays unread in its socket.
Another process sees that, for it may look at the same socket without taking anything out of it.
"""

import subprocess
import sys
from collections.abc import Iterable

_WATCH = """
import glob, os, select, signal, socket, sys, time
reader, parent, grace_s, same_s, *ending = map(float, sys.argv[1:])
notes, ending, seen = socket.socket(fileno=int(reader)), set(map(int, ending)), None
while os.getppid() == parent:
    if not select.select([notes], [], [], 1.0)[0]:
        seen = None
        continue
    unread = notes.recv(4096, socket.MSG_PEEK)
    if not unread:
        break
    number, now = sum(each in ending for each in unread), time.monotonic()
    if number and seen is None:
        seen, first = now, number
    if not number:
        seen = None
    elif now - seen < same_s:
        first = number
    elif now - seen > grace_s or number > first:
        text = "The run does not hear " + signal.Signals(next(each for each in unread if each in ending)).name
        os.write(2, f"\\n{text}: some code holds the interpreter. It is killed.\\n".encode())
        lists = glob.glob(f"/proc/{int(parent)}/task/*/children")
        children = {int(each) for path in lists for each in open(path).read().split()} - {os.getpid()}
        for each in (int(parent), *children):
            os.kill(each, signal.SIGKILL)
        break
    time.sleep(0.1)
"""


class StarvationWatch:
    """Kills this process if the first signal that ends it stays unread for too long, or at the second one.

    Args:
        reader: Socket into which the kernel writes the numbers of signals.
        parent: Number of this process.
        ending: Signals that end the run.
        grace_s: Seconds after which it is killed.
        same_s: Seconds within which a second signal counts as the same.
    """

    def __init__(self, reader: int, parent: int, ending: Iterable[int], grace_s: float, same_s: float) -> None:
        numbers = [reader, parent, grace_s, same_s, *(int(each) for each in ending)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCH, *map(str, numbers)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(reader,),
            start_new_session=True,  # signals of the terminal are for the run
        )

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
