"""Sessions in which earlier code replaced what its runner needs: later calls run all the same."""

import asyncio

import pytest

from aepo_lightning.tools.jail import ExitKind
from tests.support.slow import quick
from tests.tools.jail.parts import needs_bubblewrap

pytestmark = needs_bubblewrap
BROKEN = "def broken(*a, **k):\n    raise ValueError('poison')\n"
# Every function of modules that a runner might use; afterwards nothing there does what it should.
WHOLE_MODULES = ["os", "posix", "signal", "io", "threading", "traceback", "linecache", "atexit", "contextlib", "ast",
                 "random", "types", "json", "gc", "time", "tokenize", "codeop", "collections", "functools"]  # fmt: skip
POISONS = {
    **{
        f"all-of-{name}": f"{BROKEN}import {name}\nfor n, v in list(vars({name}).items()):\n"
        f"    if callable(v) and not n.startswith('__'):\n        setattr({name}, n, broken)"
        for name in WHOLE_MODULES
    },
    "builtins": f"{BROKEN}import builtins\nfor n in ('isinstance', 'len', 'compile', 'exec', 'enumerate', 'map', "
    "'zip', 'list', 'dict', 'type', 'vars', 'getattr', 'any', 'all', 'open', 'max', 'int'):\n"
    "    setattr(builtins, n, broken)",
    "builtins-are-gone": "import builtins\nkeep = builtins.print\nvars(builtins).clear()\nbuiltins.print = keep",
    "trace-that-raises": f"{BROKEN}import sys\nsys.settrace(broken)",
    "profile-that-raises": f"{BROKEN}import sys\nsys.setprofile(broken)",
    "little-depth": "import sys\nsys.setrecursionlimit(30)",
    "modules-are-gone": "import sys\nsys.modules.clear()",
    "path-is-gone": "import sys\nsys.path[:] = []\nsys.meta_path[:] = []\nsys.path_hooks[:] = []",
    "methods-of-shared-classes": "import contextlib, threading\ncontextlib.suppress.__exit__ = None\n"
    "threading.Thread.join = None",
    "line-cache": "import linecache\nlinecache.cache = None",
    "idle-executor": "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(2)\n"
    "list(pool.map(abs, [-1]))",
    "streams-that-raise": "import sys\nclass S:\n    def __getattr__(self, n): raise KeyboardInterrupt\n"
    "sys.stdout = sys.stderr = sys.stdin = S()",
    "exit-function-that-exits": "import atexit, os\natexit.register(os._exit, 3)",
    "alarm-by-a-kept-timer": "import signal\nreal = signal.setitimer\nsignal.setitimer = lambda *a: None\n"
    "real(signal.ITIMER_REAL, 0.3)",
    "redirected-descriptors": "import os\nr, w = os.pipe()\nos.dup2(w, 1)\nos.dup2 = os.open = os.close = None",
}  # fmt: skip


def play(pool, *codes):
    async def scenario():
        session = await pool.session()
        return [await session.run(code) for code in codes]

    return asyncio.run(scenario())


QUICK = ("all-of-os", "all-of-signal", "builtins", "trace-that-raises", "modules-are-gone", "idle-executor")


@pytest.mark.parametrize("poison", quick(POISONS, *QUICK))
def test_a_later_call_runs_and_prints_whatever_an_earlier_one_replaced(pool, poison):
    wait = "" if "timer" not in poison else "\nfor _ in range(10**7): pass"
    last = play(pool, "x = 20", poison, f"{wait}\nprint(x + 1)")[-1]
    assert (last.exit, last.stdout) == (ExitKind.OK, "21\n"), last.stderr


@pytest.mark.parametrize("name", ["all-of-traceback", "all-of-os", "builtins", "all-of-linecache"])
def test_a_later_error_is_shown_with_its_line(pool, name):
    last = play(pool, POISONS[name], "y = 1 / 0")[-1]
    assert last.exit == ExitKind.ERROR
    assert "y = 1 / 0" in last.stderr
    assert last.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_numbers_are_seeded_though_the_seeding_was_replaced(pool):
    clean = play(pool, "import random", "random.random()")[-1]
    poisoned = play(pool, "import random\nrandom.seed = lambda *a: None\nrandom.Random.seed = None", "random.random()")
    assert poisoned[-1].stdout == clean.stdout


def test_what_code_replaced_for_itself_stays_replaced(pool):
    last = play(pool, "import math\nmath.pi = 3\nimport builtins\nbuiltins.half = lambda n: n / 2", "math.pi, half(4)")
    assert last[-1].stdout == "(3, 2.0)\n"


def test_an_executor_goes_on_in_later_calls_and_its_work_is_done(pool):
    made = (
        "import time\nfrom concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)\ndone = []\n"
        "for n in range(3): pool.submit(done.append, n)"
    )
    last = play(pool, made, "len(done) >= 2, pool.submit(abs, -5).result()")[-1]
    assert last.stdout == "(True, 5)\n", last.stderr
