"""Attacks that every fresh worker must withstand before it gets a call."""

import json

from aepo_lightning.tools.jail.bubblewrap import ENVIRONMENT, library_places
from aepo_lightning.tools.jail.execution import ExitKind
from aepo_lightning.tools.jail.inside.job import Job
from aepo_lightning.tools.jail.settings import PoolSettings
from aepo_lightning.tools.jail.worker import Worker, WorkerError

_TIMEOUT_S = 30.0  # the attacks take 20 ms; a machine under load may take its time
# Each returns normally if the attack succeeds, and raises if the jail holds.
_ATTACKS = """
import _thread, contextlib, ctypes, json, os, resource, socket, sys, threading, time

def read_password_hashes(): open("/etc/shadow").read()
def read_this_library():
    for folder in (*SETTINGS["library"], *(f"{path}/aepo_lightning" for path in sys.path)):
        for attempt in (lambda: os.listdir(folder), lambda: open(f"{folder}/__init__.py")):
            with contextlib.suppress(OSError):
                return attempt()
    raise PermissionError
def read_environment_of_first_process(): open("/proc/1/environ").read()
def write_to_root(): os.mkdir("/x")
def write_to_system(): open("/usr/x", "w")
def write_to_devices(): open("/dev/x", "w")
def write_to_process_table(): open("/proc/self/oom_score_adj", "w").write("-1000")
def open_internet_socket(): socket.socket(socket.AF_INET, socket.SOCK_STREAM)
def open_local_socket(): socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
def fork(): os.fork() or os._exit(0)
def start_program(): os.execv("/bin/true", ["true"])
def signal_first_process(): os.kill(1, 0)
def signal_everybody(): os.kill(-1, 0)
def become_root(): os.setuid(0)
def raise_memory_limit(): resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
def allocate_beyond_limit(): bytearray((SETTINGS["memory_mb"] + 1) << 20)
def new_user_namespace(): refuse(ctypes.CDLL(None).unshare(0x10000000))
def start_many_threads():
    threading.stack_size(1 << 16)  # small enough for the limit on memory, so that the one on processes must hold
    go_on = threading.Event()
    try:
        for _ in range(64):
            _thread.start_new_thread(go_on.wait, ())  # `Thread.start` would wait for one that finds no memory
        # Threads without memory end at once: only those that live count.
        refuse(0 if open("/proc/self/status").read().count("Threads:\\t65") else -1)
    finally:
        go_on.set()
def have_foreign_variables(): refuse(-1 if set(os.environ) <= set(SETTINGS["environment"]) else 0)
def be_host_root(): refuse(-1 if os.getresuid() == (SETTINGS["uid"],) * 3 and SETTINGS["uid"] else 0)
def have_capabilities(): refuse(-1 if "CapEff:\\t0000000000000000" in STATUS else 0)
def have_no_filter(): refuse(-1 if "Seccomp:\\t2" in STATUS and "NoNewPrivs:\\t1" in STATUS else 0)
def see_other_processes(): refuse(-1 if PROCESSES == {"1", str(os.getpid())} else 0)

def refuse(result):
    if result == -1:
        raise PermissionError

STATUS = open("/proc/self/status").read()
PROCESSES = {name for name in os.listdir("/proc") if name.isdigit()}
succeeded = []
attacks = [value for name, value in list(globals().items()) if callable(value) and name != "refuse"]
for attack in attacks:
    try:
        attack()
    except (OSError, ValueError, MemoryError, RuntimeError):
        continue
    succeeded.append(attack.__name__)
print(json.dumps({"tried": len(attacks), "succeeded": succeeded}))
"""


def self_test(worker: Worker, settings: PoolSettings) -> int:
    """Run the attacks inside a worker.

    Args:
        worker: A fresh one.
        settings: What it was started with.

    Returns:
        The number of attacks that failed, as they all must.

    Raises:
        WorkerError: If an attack succeeded or the test could not be run. Nothing may run in this worker then.
    """
    known = {
        "library": library_places(worker.interpreter),
        "memory_mb": settings.memory_mb,
        "environment": [*ENVIRONMENT, "PWD", "LC_CTYPE"],
        "uid": worker.facts["uid"],
    }
    job = Job(code=f"SETTINGS = {known!r}\n{_ATTACKS}", timeout_s=_TIMEOUT_S)
    execution = worker.run_blocking(job)
    if execution.exit != ExitKind.OK:
        raise WorkerError(f"its self-test could not be run: {execution.exit}: {execution.stderr[-500:].strip()}")
    report = json.loads(execution.stdout)
    if report["succeeded"]:
        raise WorkerError(f"its self-test found holes: {', '.join(report['succeeded'])}")
    return int(report["tried"])
