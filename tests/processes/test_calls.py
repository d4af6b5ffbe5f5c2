"""Functions in processes of their own: they are kept, replaced, found or sent, and end with whoever started them."""

import asyncio
import importlib
import os
import pickle
import subprocess
import sys
import threading

import pytest

from aepo_lightning.processes import fork_server
from aepo_lightning.processes.calls import ProcessCalls
from aepo_lightning.processes.child import TEXT
from aepo_lightning.processes.errors import BrokenCallError, CannotSendError
from aepo_lightning.processes.fork_server import ForkServer
from aepo_lightning.processes.program import Program
from tests.support import plain_functions
from tests.support.processes import is_running, wait_until


def texts(function, *calls, seed=0):
    made = ProcessCalls(function)

    async def run():
        return [await made.text(each, seed) for each in calls]

    return asyncio.run(run())


def value(function, *arguments):
    return asyncio.run(ProcessCalls(function).value(*arguments))


def test_one_warm_process_answers_call_after_call():
    answers = texts(plain_functions.where, *[{"text": "x"}] * 3)
    assert len(set(answers)) == 1
    assert answers[0] != str(os.getpid())


def test_random_numbers_come_from_the_seed():
    first, again, other = (texts(plain_functions.draw, {"text": "x"}, seed=seed) for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("answer", [None, 0.5, {"a": (1, "b")}], ids=str)
def test_a_value_comes_back_as_it_was(answer):
    assert value(plain_functions.give_back, answer) == answer


def test_what_a_function_promises_is_awaited_there():
    assert value(plain_functions.awaited, 1) == "2"


def test_an_answer_without_end_is_not_read(monkeypatch):
    monkeypatch.setattr(fork_server, "_MAX_ANSWER_BYTES", 100)
    assert value(plain_functions.give_back, "x") == "x"
    with pytest.raises(BrokenCallError, match=r"it answered with \d+ bytes, but at most 100 are taken"):
        value(plain_functions.give_back, "x" * 200)


def test_a_worker_is_replaced_after_many_calls(monkeypatch):
    monkeypatch.setattr(fork_server, "_MAX_CALLS", 2)
    server = ForkServer(Program(module=plain_functions.__name__))
    job = {"function": "where", "arguments": ("x",), "named": {}, "seed": 0, "kind": TEXT}

    async def run():
        return [await server.call(pickle.dumps(job)) for _ in range(3)]

    first, second, third = asyncio.run(run())
    assert first == second != third
    server.close()


def test_a_server_that_dies_while_it_is_asked_is_asked_again(monkeypatch):
    ask, asked = fork_server._Worker.ask, []

    async def fail_once(worker, frame):
        asked.append(frame)
        if len(asked) == 1:
            raise fork_server._GoneError
        return await ask(worker, frame)

    monkeypatch.setattr(fork_server._Worker, "ask", fail_once)
    server = ForkServer(Program(module=plain_functions.__name__))
    asyncio.run(server.prepare())
    assert asked == [b"", b""]
    server.close()


def test_a_function_runs_in_the_main_thread():
    assert value(plain_functions.is_in_main_thread) is True


def test_the_line_that_raised_comes_along_with_names_and_message():
    with pytest.raises(ConnectionError, match="no quota left") as raised:
        value(plain_functions.misbehave, "own")
    assert type(raised.value).__name__ == "QuotaError"
    assert raised.value.raised_at.startswith("plain_functions.py, line ")


@pytest.mark.parametrize(
    ("function", "argument", "error", "message"),
    [
        (plain_functions.misbehave, "lock", TypeError, "an answer that cannot be sent, lock: cannot pickle"),
        (plain_functions.give_back, threading.Lock(), BrokenCallError, "what it is called with cannot be sent"),
        (plain_functions.misbehave, "segfault", BrokenCallError, "its process ended before it answered"),
    ],
    ids=["answer", "argument", "end"],
)
def test_a_call_that_does_not_come_through_says_why(function, argument, error, message):
    with pytest.raises(error, match=message):
        value(function, argument)


def test_what_cannot_be_sent_is_known_without_a_process():
    held = threading.Lock()
    with pytest.raises(CannotSendError, match="cannot pickle"):
        ProcessCalls(lambda: held).check()
    ProcessCalls(plain_functions.where).check()
    ProcessCalls(lambda: 1).check()


@pytest.mark.parametrize("function", [plain_functions.spawn, plain_functions.spawn_apart], ids=["group", "own_group"])
def test_what_a_function_started_ends_with_it_when_it_is_cancelled(tmp_path, function):
    path = tmp_path / "pid"
    made = ProcessCalls(function)

    async def run():
        hung = asyncio.create_task(made.text({"path": str(path)}))
        while not (path.exists() and path.read_text()):
            await asyncio.sleep(0.01)
        hung.cancel()
        await asyncio.wait({hung})

    asyncio.run(run())
    wait_until(lambda: not is_running(int(path.read_text())))


def test_a_closure_is_sent_with_what_it_closes_over():
    table = {"a": "1"}

    def find(word: str) -> str:
        """Find a word."""
        return f"{table.get(word)} {os.getpid()}"

    found, process = texts(find, {"word": "a"})[0].split()
    assert found == "1"
    assert process != str(os.getpid())


@pytest.mark.parametrize("answer", ["one", "two"])
def test_a_module_of_the_same_name_in_another_folder_is_another_module(answer, tmp_path, monkeypatch):
    source = f'def say(text: str) -> str:\n    """Say."""\n    return "{answer}"\n'
    (tmp_path / "says_something.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "says_something", raising=False)
    assert texts(importlib.import_module("says_something").say, {"text": "x"}) == [answer]
    monkeypatch.delitem(sys.modules, "says_something")


UNFORKABLE = {
    "threads": "from threading import Event, Thread\nThread(target=Event().wait, name='feeder', daemon=True).start()",
    "cuda": "import sys, types\ncuda = types.SimpleNamespace(is_initialized=lambda: True)\n"
    "sys.modules['torch'] = types.SimpleNamespace(cuda=cuda, manual_seed=abs)",
    "driver": "import os\nos.listdir = lambda _: ['x']\nos.readlink = lambda _: '/dev/nvidiactl'",
}
REASONS = {"threads": "starts threads (feeder)", "cuda": "uses a GPU", "driver": "uses a GPU"}
SAYS_WHERE = """
import os
loaded_in = os.getpid()

def say(text: str) -> str:
    return f"{os.getpid()} {os.getpid() == loaded_in}"
"""


def two_answers(module):
    server = ForkServer(Program(module=module))
    job = {"function": "say", "arguments": ("x",), "named": {}, "seed": 0, "kind": TEXT}

    async def run():
        return [(await server.call(pickle.dumps(job))).decode() for _ in range(2)]

    try:
        return asyncio.run(run())
    finally:
        server.close()


@pytest.mark.parametrize("name", UNFORKABLE)
def test_what_no_fork_keeps_is_loaded_by_each_process(name, tmp_path, monkeypatch, capfd):
    (tmp_path / f"unforkable_{name}.py").write_text(UNFORKABLE[name] + SAYS_WHERE)
    monkeypatch.syspath_prepend(tmp_path)
    first, second = two_answers(f"unforkable_{name}")
    assert first == second, "a process serves again"
    assert first.endswith("True")
    assert f"unforkable_{name} {REASONS[name]} while it is loaded, which no fork keeps" in capfd.readouterr().err


def test_what_a_fork_keeps_is_loaded_once(tmp_path, monkeypatch, capfd):
    (tmp_path / "forkable.py").write_text(SAYS_WHERE)
    monkeypatch.syspath_prepend(tmp_path)
    assert two_answers("forkable")[0].endswith("False")
    assert capfd.readouterr().err == ""


def test_a_server_that_was_killed_is_started_again():
    (first,) = texts(plain_functions.where, {"text": "x"})
    made = ProcessCalls(plain_functions.where)
    asyncio.run(made.prepare())
    os.kill(made.server_pid, 9)
    wait_until(lambda: not is_running(int(first)))  # workers end with their server
    (again,) = texts(plain_functions.where, {"text": "x"})
    assert again != first


SCRIPT = '''
import asyncio, os, sys
from aepo_lightning.processes.calls import ProcessCalls

def where(text: str) -> str:
    """Tell the process."""
    return f"{os.getpid()}"

print(asyncio.run(ProcessCalls(where).text({"text": "x"})), flush=True)
if os.fork() == 0:
    sys.stdin.read()  # a child that lives on must keep nothing of it alive
    os._exit(0)
os.kill(os.getpid(), 9)
'''


@pytest.mark.slow
def test_a_script_without_a_guard_is_not_run_again_and_nothing_outlives_it(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    worker = process.stdout.readline()
    process.wait(60)
    assert worker.strip().isdigit()
    wait_until(lambda: not is_running(int(worker)))
    process.stdin.close()
    assert process.stdout.read() == ""
    process.stdout.close()
