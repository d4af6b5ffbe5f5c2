"""The attack suite: every attack is contained, and the call after it finds a clean house."""

import asyncio
import importlib.util
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aepo_lightning.tools.jail import ExitKind
from tests.support.paths import ROOT
from tests.tools.jail import attacks
from tests.tools.jail.parts import code_runs, needs_bubblewrap, run

pytestmark = needs_bubblewrap
needs_numpy = pytest.mark.skipif(importlib.util.find_spec("numpy") is None, reason="numpy is not installed")
on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86_64")


def check(pool, attack):
    execution = run(pool, attack.code, timeout_s=attack.timeout_s)
    written = execution.stdout + execution.stderr
    assert re.fullmatch(attack.exits, execution.exit), f"{execution.exit}: {written[-500:]}"
    assert re.search(attack.writes, written), written[-500:]
    after = run(pool, "import os\nprint(os.listdir(), os.getcwd())")
    assert after.exit == ExitKind.OK
    assert after.stdout == "[] /jail/work\n"


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(each, id=each.name, marks=pytest.mark.slow if each.exits == "timeout" else ())
        for each in attacks.ALL
    ],
)
def test_is_contained(pool, attack):
    check(pool, attack)


@needs_numpy
@pytest.mark.parametrize("attack", attacks.NUMPY, ids=lambda attack: attack.name)
def test_is_contained_with_numpy(pool, attack):
    check(pool, attack)


@on_x86
@pytest.mark.parametrize("attack", attacks.KERNEL, ids=lambda attack: attack.name)
def test_is_contained_by_the_filter(pool, attack):
    check(pool, attack)


def test_temporary_files_of_the_host_are_not_there(pool, tmp_path):
    (tmp_path / "secret").write_text("do-not-leak")
    assert re.search(attacks.DENIED, run(pool, f"open({str(tmp_path / 'secret')!r})").stderr)


@pytest.mark.parametrize("path", [ROOT, ROOT / "pyproject.toml", Path.home(), Path(__file__)], ids=str)
def test_files_of_the_host_are_not_there(pool, path):
    execution = run(pool, f"open({str(path)!r})")
    assert execution.exit == ExitKind.ERROR
    assert re.search("IsADirectory|" + attacks.DENIED, execution.stderr)
    assert run(pool, f"import os\nos.listdir({str(path)!r})").exit == ExitKind.ERROR


def test_variables_of_the_host_are_not_there(pool):
    assert "A_SECRET_OF_THE_HOST" in os.environ
    execution = run(
        pool,
        "import os\nprint(dict(os.environ))\nfor p in os.listdir('/proc'):\n    try:\n"
        "        print(open(f'/proc/{p}/environ').read())\n    except OSError:\n        pass",
    )
    assert execution.exit == ExitKind.OK
    assert "do-not-leak" not in execution.stdout
    assert "OMP_NUM_THREADS" in execution.stdout


@pytest.mark.parametrize(
    "before, after, clean",
    [
        pytest.param("open('left', 'w').write('x')", "import os\nos.listdir()", "[]", id="file"),
        pytest.param("import os\nos.environ['X'] = '1'", "import os\nos.environ.get('X')", "None", id="variable"),
        pytest.param("import math\nmath.pi = 3", "import math\nmath.pi", "3.141592653589793", id="module"),
        pytest.param("import builtins\nbuiltins.len = lambda x: 1", "len([])", "0", id="builtin"),
        pytest.param("import os\nos.mkdir('d')\nos.chdir('d')", "import os\nos.getcwd()", "/jail/work", id="folder"),
        pytest.param(
            "import os, threading\ndef write():\n    while True:\n        open('t', 'w').close()\n"
            "threading.Thread(target=write, daemon=True).start()",
            "import os\nos.listdir()",
            "[]",
            id="thread",
        ),
        pytest.param(
            "import sys\nsys.setrecursionlimit(500)", "import sys\nsys.getrecursionlimit()", "1000", id="depth"
        ),
        pytest.param(
            "import signal\nsignal.signal(2, signal.SIG_IGN)",
            "import signal\nsignal.getsignal(2) is signal.default_int_handler",
            "True",
            id="handler",
        ),
        pytest.param("import sys\nsys.path.clear()", "import decimal\ndecimal.Decimal(1)", "1", id="path"),
        pytest.param("import os\nos.umask(0o777)", "import os\noct(os.umask(0))", "0o22", id="umask"),
    ],
)
def test_calls_do_not_see_each_other(pool, before, after, clean):
    for _ in range(3):  # every worker
        assert run(pool, before).exit == ExitKind.OK
    for _ in range(3):
        assert run(pool, after).stdout.strip() == clean


@needs_numpy
def test_a_patched_numpy_is_whole_in_the_next_call(pool):
    for _ in range(3):
        run(pool, "import numpy\nnumpy.linalg.det = lambda m: 99\nnumpy.pi = 3")
    for _ in range(3):
        assert run(pool, "import numpy\nround(numpy.linalg.det(numpy.eye(2))), numpy.pi > 3.1").stdout == "(1, True)\n"


@pytest.mark.parametrize(
    "lock",
    ["flock(f, fcntl.LOCK_EX)", "lockf(f, fcntl.LOCK_SH)", "fcntl(f, 37, bytes(32))"],
    ids=["file", "range", "own"],
)
def test_no_file_of_the_host_is_locked(pool, lock):
    async def scenario():
        await pool.start()
        code = f"import fcntl, time\nf = open({os.__file__!r})\ntry:\n    fcntl.{lock}\nexcept OSError:\n    pass\n"
        call = asyncio.create_task(pool.run(f"{code}print('held', flush=True)\ntime.sleep(30)", timeout_s=30.0))
        while not code_runs(pool):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # by then it has tried
        child = subprocess.run([sys.executable, "-c", TAKE_LOCKS, os.__file__], check=False, capture_output=True)
        call.cancel()
        return child

    done = asyncio.run(scenario())
    assert done.returncode == 0, done.stderr.decode()


TAKE_LOCKS = """
import fcntl, os, sys
may_write = os.access(sys.argv[1], os.W_OK)
file = open(sys.argv[1], "r+" if may_write else "r")
fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
if may_write:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
"""


def test_a_database_in_the_work_folder_can_be_used(pool):
    code = (
        "import sqlite3\nc = sqlite3.connect('a.db')\nc.execute('create table t(x)')\n"
        "c.execute('insert into t values (3)')\nc.commit()\nc.close()\n"
        "sqlite3.connect('a.db').execute('select x from t').fetchall()"
    )
    done = run(pool, code)
    assert done.stdout == "[(3,)]\n", done.stderr
