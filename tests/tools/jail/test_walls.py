"""Each wall on its own: what would be open if one of them were left out."""

import asyncio
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from aepo_lightning.errors import ConfigError
from aepo_lightning.tools.jail import PoolSettings, PythonPool, SandboxUnavailableError, bubblewrap
from aepo_lightning.tools.jail.bubblewrap import (
    Bubblewrap,
    Interpreter,
    build_command,
    check_interpreter,
    find_bubblewrap,
    find_interpreter,
)
from aepo_lightning.tools.jail.inside.zygote import check_namespace, check_single_thread
from aepo_lightning.tools.jail.self_test import self_test
from aepo_lightning.tools.jail.worker import Worker, WorkerError
from tests.support.paths import ROOT
from tests.tools.jail.parts import inner, needs_bubblewrap, open_files, run

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes users")
INSTALLED = Bubblewrap(path="/usr/bin/bwrap", version="bubblewrap 0.8.0", options=frozenset({"--disable-userns"}))
PYTHON = Interpreter(executable="/opt/a/bin/python", prefix="/opt/a", site_paths=("/home/b/c/site-packages",))


def command(*, is_root, program=INSTALLED):
    return build_command(program, PYTHON, is_root=is_root, descriptors=(3, 4), work_mb=64)


def status(pid, field):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1:] for line in lines if line.startswith(field + ":"))


def pids(pool):
    return pool._opening.backend.pids


@needs_bubblewrap
def test_bubblewrap_and_the_zygote_get_no_variable_of_the_host(pool):
    asyncio.run(pool.start())
    for pid in pids(pool):
        for process in (pid, inner(pid)):
            try:
                environment = Path(f"/proc/{process}/environ").read_bytes()
            except PermissionError:  # what the zygote has is for root's eyes only
                continue
            assert b"A_SECRET_OF_THE_HOST" not in environment


@needs_bubblewrap
@as_root
def test_each_worker_of_root_is_a_user_of_its_own_to_the_kernel(pool):
    asyncio.run(pool.start())
    users = [status(inner(pid), "Uid") for pid in pids(pool)]
    assert all(len(set(uids)) == 1 and 60_000 <= int(uids[0]) < 61_184 for uids in users)
    assert len({uids[0] for uids in users}) == len(users)
    assert all(status(inner(pid), "Groups") == [] for pid in pids(pool))


def test_root_gets_no_user_namespace_and_others_do():
    assert "--unshare-user" not in command(is_root=True)
    assert {"CAP_SETUID", "CAP_SETGID"} <= set(command(is_root=True))
    assert {"--unshare-user", "--disable-userns"} <= set(command(is_root=False))
    assert "--cap-add" not in command(is_root=False)
    older = replace(INSTALLED, options=frozenset())
    assert "--disable-userns" not in command(is_root=False, program=older)


def test_folders_above_a_mount_are_readable_for_all():
    words = command(is_root=True)
    for folder in ("/opt", "/home", "/home/b", "/home/b/c", "/jail"):
        position = words.index(folder)
        assert words[position - 3 : position] == ["--perms", "0755", "--dir"]


@needs_bubblewrap
def test_an_interpreter_below_a_private_folder_can_be_read(pool):
    folders = [str(folder) for folder in Path(find_interpreter(()).prefix).parents]
    execution = run(pool, f"import os\nall(os.stat(f).st_mode & 0o555 == 0o555 for f in {folders!r})")
    assert execution.stdout == "True\n"


@needs_bubblewrap
def test_nothing_but_the_work_folder_can_grow(pool):
    mounts = [line.split() for line in run(pool, "open('/proc/self/mountinfo').read()").stdout.splitlines() if line]
    writable = {words[4]: words[words.index("-") + 1 :] for words in mounts if words[5].startswith("rw")}
    kinds = {path: kind for path, (kind, *_) in writable.items() if not path.startswith("/dev/")}
    assert kinds == {"/proc": "proc", "/jail/work": "tmpfs"}
    assert f"size={64 << 10}k" in writable["/jail/work"][-1]
    assert not any(words[4] in ("/dev", "/dev/shm", "/dev/pts") for words in mounts)


@pytest.mark.parametrize("prefix", ["/", "/root", "/home", str(Path.home())])
def test_a_prefix_that_holds_private_files_is_refused(prefix):
    with pytest.raises(ConfigError, match="must be a folder of its own"):
        check_interpreter(replace(PYTHON, prefix=prefix))


def test_an_interpreter_that_cannot_be_read_is_refused(tmp_path):
    private = tmp_path / "private"
    private.mkdir(mode=0)
    found = Interpreter(executable=sys.executable, prefix=str(private), site_paths=())
    if os.geteuid() != 0:
        with pytest.raises(ConfigError, match="must be readable"):
            check_interpreter(found)
        return
    child = os.fork()
    if child == 0:
        os.setresuid(65534, 65534, 65534)
        try:
            check_interpreter(found)
        except ConfigError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_folders_inside_others_are_mounted_once():
    found = Interpreter(executable="/a/bin/python", prefix="/a", site_paths=("/a/lib/site-packages", "/usr/lib/x"))
    assert found.folders() == ("/a",)
    assert Interpreter(executable="/usr/bin/python3", prefix="/usr", site_paths=()).folders() == ()


def test_packages_below_tmp_move_because_tmp_is_the_work_folder():
    sites = ("/home/x/site-packages", "/tmp/venv/lib/site-packages")
    found = Interpreter(executable="/opt/a/bin/python", prefix="/opt/a", site_paths=sites)
    assert [found.inside(path) for path in found.folders()] == ["/opt/a", sites[0], "/jail/site/1"]
    within = Interpreter(executable="/tmp/a/bin/python", prefix="/tmp/a", site_paths=("/tmp/a/lib/site-packages",))
    assert [within.inside(path) for path in within.folders()] == ["/tmp/a"]


def test_the_zygote_refuses_the_namespace_of_the_host():
    with pytest.raises(Exception, match="no PID namespace of its own"):
        check_namespace(os.readlink("/proc/self/ns/pid"))


def test_the_zygote_refuses_threads():
    import threading

    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait)
    thread.start()
    try:
        with pytest.raises(Exception, match="started threads"):
            check_single_thread()
    finally:
        go_on.set()
        thread.join()


@needs_bubblewrap
def test_libraries_are_told_to_use_one_thread(pool):
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    assert run(pool, f"import os\n[os.environ[n] for n in {names}]").stdout == "['1', '1', '1']\n"


@needs_bubblewrap
@pytest.mark.skipif(platform.system() != "Linux", reason="Linux")
def test_filter_and_landlock_are_in_force(pool):
    text = run(pool, "open('/proc/self/status').read()").stdout
    assert "Seccomp:\t2" in text
    assert "NoNewPrivs:\t1" in text
    isolation = asyncio.run(pool.start())
    assert isolation.level == "jail"
    assert "attacks tried and withstood" in isolation.description


@needs_bubblewrap
def test_a_worker_that_fails_its_self_test_is_not_used():
    settings = PoolSettings(preload=(), memory_mb=1024)
    worker = Worker(find_bubblewrap(), find_interpreter(()), settings)
    try:
        assert self_test(worker, settings) > 20
        with pytest.raises(WorkerError, match="found holes: allocate_beyond_limit"):
            self_test(worker, replace(settings, memory_mb=256))  # a worker that allows more than it was told to
    finally:
        worker.close()


@needs_bubblewrap
def test_packages_that_are_not_there_are_left_out(pool):
    only = PythonPool(num_workers=1, preload=("json", "no_such_package"))
    assert "with json preloaded" in asyncio.run(only.start()).description
    only.close()


def fake_bubblewrap(folder, monkeypatch, script):
    program = folder / "bwrap"
    program.write_text(script if "\0" in script else f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize(
    "script, reason",
    [
        pytest.param(None, "bubblewrap is not installed", id="missing"),
        pytest.param("echo 'bwrap: No permissions to ...' >&2; exit 1", "No permissions", id="forbidden"),
        pytest.param("exit 3", "exit code 3", id="silent"),
        pytest.param("kill -9 $$", "exit code", id="dies"),
        pytest.param("\0", "Exec format error", id="no-program"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("isolation", ["auto", "bubblewrap"])
def test_without_a_working_bubblewrap_nothing_is_run(tmp_path, monkeypatch, script, reason, isolation):
    if script is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        fake_bubblewrap(tmp_path, monkeypatch, script)
    pool = PythonPool(isolation=isolation)
    with pytest.raises(SandboxUnavailableError, match=f"(?s){reason}.*Install bubblewrap.*isolation=unsafe"):
        asyncio.run(pool.start())
    with pytest.raises(SandboxUnavailableError, match=reason):
        run(pool, "1")
    pool.close()


@needs_bubblewrap
def test_a_worker_that_cannot_be_started_holds_nothing():
    before = open_files()
    missing = replace(INSTALLED, path="/nowhere/bwrap")
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            Worker(missing, find_interpreter(()), PoolSettings(preload=()))
    assert open_files() == before


def test_an_interpreter_that_cannot_be_mounted_is_a_reason_to_look_further(monkeypatch):
    monkeypatch.setattr(sys, "base_prefix", "/root")
    with pytest.raises(
        SandboxUnavailableError, match=r"folder of its own.*no remote sandbox is set.*Install bubblewrap"
    ):
        asyncio.run(PythonPool().start())


@needs_bubblewrap
def test_a_program_that_only_pretends_to_be_bubblewrap_is_found_out(tmp_path, monkeypatch):
    for source, target in bubblewrap._own_files().items():
        copy = Path(f"{tmp_path}{target}")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy)
    # Starts Python as it is asked to, but without any wall.
    start = f'while [ "$1" != "--" ]; do shift; done; shift; PYTHONPATH={tmp_path}/jail exec "$@"'
    fake_bubblewrap(tmp_path, monkeypatch, start)
    pool = PythonPool(isolation="bubblewrap", preload=())
    with pytest.raises(SandboxUnavailableError, match="no PID namespace of its own"):
        asyncio.run(pool.start())
    pool.close()


SYSTEM_PYTHON = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
AS_NOBODY = """
import asyncio, json, os, sys
from aepo_lightning.tools.jail import PythonPool
from tests.tools.jail import attacks
async def main():
    pool = PythonPool(num_workers=2, timeout_s=20.0, memory_mb=512)
    isolation = await pool.start()
    chosen = [*attacks.ALL, *attacks.KERNEL]
    # All at once on a busy machine take a while; only what is to be cut off keeps its short time.
    times = [attack.timeout_s if "timeout" in attack.exits else 90.0 for attack in chosen]
    found = await asyncio.gather(*(pool.run(a.code, timeout_s=time) for a, time in zip(chosen, times)))
    print(json.dumps([isolation.description, [(a.name, e.exit, e.stdout + e.stderr) for a, e in zip(chosen, found)]]))
    pool.close()
asyncio.run(main())
"""


@needs_bubblewrap
@as_root
@pytest.mark.skipif(not os.path.exists(SYSTEM_PYTHON), reason="no Python outside of root's home")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86_64")
@pytest.mark.skipif(
    not all(folder.stat().st_mode & 0o001 for folder in Path(ROOT).parents), reason="others cannot enter this checkout"
)
@pytest.mark.slow
def test_another_user_contains_all_attacks_too():
    import json
    import re

    from tests.tools.jail import attacks

    # Packages may stand in several folders, one of which names the others.
    path = ":".join([str(ROOT), *(folder for folder in sys.path if folder.endswith("site-packages"))])
    answer = subprocess.run(
        [SYSTEM_PYTHON, "-c", AS_NOBODY],
        user=65534, group=65534, extra_groups=[], cwd="/", capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-2000:]
    description, found = json.loads(answer.stdout)
    assert "user namespace" in description
    for attack, (name, exit_kind, written) in zip([*attacks.ALL, *attacks.KERNEL], found, strict=True):
        assert re.fullmatch(attack.exits, exit_kind), f"{name}: {exit_kind}: {written[-300:]}"
        assert re.search(attack.writes, written), f"{name}: {written[-300:]}"
