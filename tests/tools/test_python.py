"""Model-written Python: what it answers, and that nothing survives it."""

import asyncio
import os
import time

import pytest

from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import Tool, ToolCall, ToolContext, ToolStatus
from aepo_lightning.errors import ToolError, ToolTimeoutError
from aepo_lightning.tools import PythonTool, ToolRuntime
from tests.support.processes import is_running, wait_until

CONTEXT = ToolContext(question=Question(question_id="q", messages=(), answers=("x",)), call_index=0)
# Leaves its process group and its session, closes nothing, and would live for a minute.
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open({pid_file!r}, "w").write(str(os.getpid()))
        time.sleep(60)
    os._exit(0)
while not (os.path.exists({pid_file!r}) and open({pid_file!r}).read()):
    time.sleep(0.01)
"""
SLEEPER = """
import subprocess, sys
child = subprocess.Popen(["sleep", "60"])
open({pid_file!r}, "w").write(str(child.pid))
"""


def unsafe(**settings):
    """Without a wall, as these tests ask what the host gets to see."""
    return PythonTool(isolation="unsafe", **settings)


def run(code, **settings):
    return asyncio.run(unsafe(**settings)({"code": code}, CONTEXT))


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def dies(pid, limit_s=20.0):
    """Whether a process ends by itself: one that was killed is there until a busy machine lets it die."""
    deadline = time.monotonic() + limit_s
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_alive(pid)


def wait_for_text(path, limit_s=60.0):
    deadline = time.monotonic() + limit_s
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path.name} was not written"
        time.sleep(0.01)
    return path.read_text()


@pytest.mark.parametrize(
    "code, output",
    [
        pytest.param("print(1)\nprint(2)", "1\n2", id="prints"),
        pytest.param("x = 20\nx + 1", "21", id="last-expression"),
        pytest.param("'a'", "a", id="echo-is-print-not-repr"),
        pytest.param("1\n2", "2", id="only-the-last"),
        pytest.param("[].append(1)", "None", id="none-is-echoed-too"),
        pytest.param("print('x')", "x", id="print-is-not-echoed"),
        pytest.param("x = 1", "", id="statement"),
        pytest.param("# nothing", "", id="comment"),
        pytest.param("print('é∞')", "é∞", id="non-ascii"),
        pytest.param("import sys\nsys.stdout.buffer.write(b'\\xff\\xfe')\nNone", "\ufffd\ufffdNone", id="not-utf-8"),
        pytest.param("import sys\nprint('w', file=sys.stderr)\nprint(1)", "1", id="warnings-are-left-out"),
        pytest.param("import sys\nprint(1)\nsys.exit(0)", "1", id="exit-without-error"),
        pytest.param("'" + "a" * 300_000 + "'.count('a')", "300000", id="longer-than-an-argument-may-be"),
        pytest.param("import sys\nsys.path[0] != '' and sys.flags.isolated", "1", id="isolated"),
        pytest.param("class A: pass\nimport pickle\ntype(pickle.loads(pickle.dumps(A()))).__name__", "A", id="pickle"),
        pytest.param("__name__", "__main__", id="main"),
    ],
)
def test_answers_with_what_the_code_printed(code, output):
    assert run(code) == output


@pytest.mark.parametrize(
    "code, message",
    [
        pytest.param("def f():\n    return 1 / 0\nf()", "return 1 / 0\n.*\nZeroDivisionError: division", id="bug"),
        pytest.param("1 +", "SyntaxError: invalid syntax", id="syntax"),
        pytest.param("'\0'", "null bytes", id="null-byte"),
        pytest.param("'\ud800' + 1", "TypeError|SyntaxError", id="half-a-surrogate-pair"),
        pytest.param("input()", "EOFError", id="no-input"),
        pytest.param("import sys; sys.exit('bad luck')", "^bad luck$", id="exit-message"),
        pytest.param("import sys; sys.exit(3)", "exit code 3 and no message", id="exit-code"),
        pytest.param("import os; os.kill(os.getpid(), 11)", "ended by signal SIGSEGV", id="crash"),
        pytest.param("import os; os.killpg(0, 9)", "ended by signal SIGKILL", id="kills-its-group"),
        pytest.param("bytearray(10**10)", "more memory than it may", id="memory-bomb"),
        pytest.param("x = []\nwhile True: x.append(bytearray(10**7))", "more memory than it may", id="memory-leak"),
        pytest.param("open('f', 'wb').write(bytes(40 << 20))", "File too large", id="large-file"),
        pytest.param("def f(): f()\nf()", "RecursionError", id="recursion"),
        pytest.param("(" * 500 + ")" * 500, "too many nested parentheses", id="nested-source"),
        pytest.param("import sys\nwhile True: sys.stderr.write('x' * 999)", "too much to standard error", id="flood"),
    ],
)
def test_failing_code_raises_with_the_end_of_its_error(code, message):
    with pytest.raises(ToolError, match=message) as caught:
        run(code)
    assert "python_child" not in str(caught.value)
    assert str(caught.value).count("\n") < 10


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("while True: pass", id="endless-loop"),
        pytest.param("import time; time.sleep(60)", id="sleep"),
        pytest.param(
            "import signal\nfor s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
            id="ignores-signals",
        ),
        pytest.param("import os\nos.close(1)\nos.close(2)\nwhile True: pass", id="closes-its-pipes"),
        pytest.param("import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()", id="thread"),
    ],
)
def test_code_that_does_not_end_is_stopped(code):
    started = time.perf_counter()
    with pytest.raises(ToolTimeoutError, match=r"did not end within 0\.3 s"):
        run(code, timeout_s=0.3)
    assert time.perf_counter() - started < 50  # the code would run for a minute


@pytest.mark.slow
@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGSTOP"])
def test_code_that_attacks_its_supervisor_is_stopped(signal_name, tmp_path):
    pid_file = tmp_path / "pid"
    code = (
        f"import os, signal, time\nopen({str(pid_file)!r}, 'w').write(str(os.getpid()))\n"
        f"os.kill(os.getppid(), signal.{signal_name})\ntime.sleep(60)"
    )
    with pytest.raises(ToolTimeoutError, match="was stopped"):
        run(code, timeout_s=5.0)
    # Without a supervisor nobody waits for the killed worker, so it may need a moment to die.
    wait_until(lambda: not is_running(int(pid_file.read_text())), 60.0)


def test_a_flood_of_output_is_stopped_at_once_and_its_start_kept():
    started = time.perf_counter()
    output = run("while True: print('spam')", timeout_s=100.0)
    assert time.perf_counter() - started < 50
    assert output.startswith("spam\nspam")
    assert output.endswith("[output cut: the code printed too much and was stopped]")
    assert len(output) == 4000


def test_long_output_is_cut_to_the_limit():
    output = run("print('é' * 5000)", max_output_chars=300)
    assert len(output) == 300
    assert output.endswith("\n[output cut: the code printed too much]")
    assert run("print('é' * 300)", max_output_chars=300) == "é" * 300


@pytest.mark.parametrize("code", [SLEEPER, DAEMON], ids=["sleeper", "daemon"])
@pytest.mark.parametrize(
    "ending, status",
    [
        pytest.param("x = 1", ToolStatus.EMPTY, id="success"),
        pytest.param("1 / 0", ToolStatus.ERROR, id="failure"),
        pytest.param("while True: pass", ToolStatus.TIMEOUT, id="time-out", marks=pytest.mark.slow),
        pytest.param("while True: print('x')", ToolStatus.OK, id="flood"),
    ],
)
def test_no_process_survives_the_call(code, ending, status, tmp_path):
    pid_file = tmp_path / "pid"
    runtime = ToolRuntime(tools=[unsafe(timeout_s=5.0 if status is ToolStatus.TIMEOUT else 25.0)])
    call = ToolCall(tool="python", text=code.format(pid_file=str(pid_file)) + ending)
    assert asyncio.run(runtime.call(call, CONTEXT)).status == status
    assert dies(int(pid_file.read_text()))


@pytest.mark.parametrize("code", [SLEEPER, DAEMON], ids=["sleeper", "daemon"])
def test_cancellation_leaves_nothing_behind(code, tmp_path):
    pid_file, folder_file = tmp_path / "pid", tmp_path / "folder"
    note_folder = f"import os\nopen({str(folder_file)!r}, 'w').write(os.getcwd())\n"

    async def cancel():
        source = note_folder + code.format(pid_file=str(pid_file)) + "\nwhile True: pass"
        task = asyncio.create_task(unsafe()({"code": source}, CONTEXT))
        pid = await asyncio.get_running_loop().run_in_executor(None, wait_for_text, pid_file)
        task.cancel()
        with pytest.raises(asyncio.CancelledError, match=r"^$"):
            await task
        return int(pid)

    assert dies(asyncio.run(cancel()))
    assert not os.path.exists(folder_file.read_text())


def test_the_runtime_deadline_stops_the_code(tmp_path):
    pid_file = tmp_path / "pid"
    runtime = ToolRuntime(tools=[unsafe()], timeout_s=5.0)
    call = ToolCall(tool="python", text=SLEEPER.format(pid_file=str(pid_file)) + "while True: pass")
    result = asyncio.run(runtime.call(call, CONTEXT))
    assert (result.status, result.text) == (ToolStatus.TIMEOUT, "Error: Tool(python) timed out after 5 s.")
    assert dies(int(pid_file.read_text()))


def test_the_working_folder_is_fresh_and_removed():
    code = "import os\nos.makedirs('a/b'); open('a/b/c', 'w').write('x')\nprint(os.listdir('.')); print(os.getcwd())"
    first, second = (run(code).split("\n") for _ in range(2))
    assert first[0] == second[0] == "['a']"
    assert first[1] != second[1]
    assert not os.path.exists(first[1])
    assert first[1] != os.getcwd()


def test_the_environment_of_the_trainer_is_not_handed_on(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    code = "import os\nprint(sorted(os.environ))\nprint(open('/proc/self/environ').read())"
    assert "SECRET" not in run(code)
    assert "hunter2" not in run(code)


def test_calls_run_side_by_side_without_threads_and_leave_no_file_open(tmp_path):
    async def several():
        tool = unsafe(num_workers=4)
        # Each waits until all four are there.
        code = "import os, time\nopen({path!r}, 'w')\nwhile len(os.listdir({folder!r})) < 4:\n    time.sleep(0.01)\n{i}"
        codes = [code.format(path=str(tmp_path / str(i)), folder=str(tmp_path), i=i) for i in range(4)]
        tasks = [asyncio.create_task(tool({"code": each}, CONTEXT)) for each in codes]
        while not os.listdir(tmp_path):
            await asyncio.sleep(0.001)
        num_threads = len(os.listdir("/proc/self/task"))
        return await asyncio.gather(*tasks), num_threads

    run("1")
    num_threads, num_files = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
    outputs, num_threads_meanwhile = asyncio.run(several())
    assert outputs == ["0", "1", "2", "3"]
    assert num_threads_meanwhile <= num_threads
    assert len(os.listdir("/proc/self/fd")) == num_files


def test_it_is_a_tool():
    assert isinstance(PythonTool(), Tool)


@pytest.mark.parametrize(
    "settings, message",
    [
        pytest.param({"timeout_s": 0.0}, "`timeout_s` must be positive", id="no-time"),
        pytest.param({"timeout_s": float("nan")}, "`timeout_s` must be positive", id="nan"),
        pytest.param({"memory_mb": 1}, "`memory_mb` must be at least 256", id="no-memory"),
        pytest.param({"max_output_chars": 10}, "`max_output_chars` must be at least 200", id="no-output"),
    ],
)
def test_limits_under_which_nothing_runs_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PythonTool(**settings)
