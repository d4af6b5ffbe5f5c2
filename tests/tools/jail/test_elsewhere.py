"""Code that runs elsewhere than in the jail: a remote sandbox, and no sandbox at all for who insists."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from aepo_lightning.tools.jail import ExitKind, PythonPool, SandboxUnavailableError
from tests.tools.jail.parts import run


def answer(stdout="", stderr="", code=0, status="Finished", overall="Success"):
    """What a SandboxFusion server sends."""
    result = {"status": status, "execution_time": 0.01, "return_code": code, "stdout": stdout, "stderr": stderr}
    return {"status": overall, "message": "", "compile_result": None, "run_result": result,
            "executor_pod_name": None, "files": {}}  # fmt: skip


FAULTS = {
    "FAULT html": (200, b"<html>busy</html>"),
    "FAULT 429": (429, b"slow down"),
    "FAULT 500": (500, b"oops"),
    "FAULT half": (200, b'{"status": "Succ'),
    "FAULT list": (200, b"[]"),
    "FAULT nothing": (200, b""),
    "FAULT flood": (200, b'"' + b"x" * (1 << 20) + b'"'),
    "FAULT error": (200, json.dumps({"status": "SandboxError", "message": "no room", "run_result": None}).encode()),
    "FAULT slow": (200, json.dumps(answer(status="TimeLimitExceeded", overall="Failed", code=None)).encode()),
    "FAULT redirect": (302, b""),
    "FAULT long": (200, json.dumps(answer(stdout="x" * 70_000)).encode()),
}
REQUESTS = []


class Service(BaseHTTPRequestHandler):
    """Runs what it is sent as SandboxFusion would, unless the code names a fault to show."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        REQUESTS.append((self.path, request))
        status, body = next((reply for fault, reply in FAULTS.items() if fault in request["code"]), (200, None))
        if body is None:
            done = subprocess.run([sys.executable, "-c", request["code"]], capture_output=True, text=True, check=False)
            overall = "Success" if done.returncode == 0 else "Failed"
            state = "Finished" if done.returncode == 0 else "Error"
            body = json.dumps(answer(done.stdout, done.stderr, done.returncode, state, overall)).encode()
        self.send_response(status)
        self.send_header("Location", "http://127.0.0.1:1/")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def service():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def remote():
    with service() as url:
        pool = PythonPool(isolation="remote", remote_url=url, timeout_s=20.0)
        yield pool
        pool.close()


@pytest.fixture(scope="module")
def unsafe():
    pool = PythonPool(isolation="unsafe", timeout_s=20.0, memory_mb=512)
    yield pool
    pool.close()


@pytest.mark.parametrize("kind", ["remote", "unsafe"])
@pytest.mark.parametrize(
    "code, exit_kind, stdout",
    [
        pytest.param("x = 20\nx + 1", ExitKind.OK, "21\n", id="echo"),
        pytest.param("'é' + chr(0x221e)", ExitKind.OK, "é∞\n", id="non-ascii"),
        pytest.param("a, b = input(), input()\na + b", ExitKind.OK, "xy\n", id="input"),
        pytest.param("import random\nrandom.random()", ExitKind.OK, "0.23796462709189137\n", id="seed"),
        pytest.param("print(1)\n1/0", ExitKind.ERROR, "1\n", id="error"),
        pytest.param("raise MemoryError", ExitKind.MEMORY, "", id="memory"),
        pytest.param("import os\nos.kill(os.getpid(), 11)", ExitKind.KILLED, "", id="killed"),
        pytest.param("import sys\nsys.exit(3)", ExitKind.ERROR, "", id="exit-code"),
        pytest.param("import sys\nsys.exit(139)", ExitKind.ERROR, "", id="exit-code-like-a-signal"),
        pytest.param("import sys\nprint('MemoryError', file=sys.stderr)\nsys.exit(1)", ExitKind.ERROR, "", id="claim"),
    ],
)
def test_code_runs_as_it_does_in_the_jail(request, kind, code, exit_kind, stdout):
    execution = run(request.getfixturevalue(kind), code, stdin="x\ny\n", seed=3)
    assert (execution.exit, execution.stdout) == (exit_kind, stdout), execution.stderr
    if "1/0" in code:
        assert execution.stderr.count("File") == 1
        assert 'File "<code>", line 2' in execution.stderr


@pytest.mark.parametrize(
    "fault, exit_kind, reason",
    [
        ("html", ExitKind.LOST, "Expecting value"),
        ("429", ExitKind.LOST, "HTTP status 429"),
        ("500", ExitKind.LOST, "HTTP status 500"),
        ("half", ExitKind.LOST, "Unterminated"),
        ("list", ExitKind.LOST, "something else than an object"),
        ("nothing", ExitKind.LOST, "Expecting value"),
        ("flood", ExitKind.LOST, "more than"),
        ("error", ExitKind.LOST, "no room"),
        ("redirect", ExitKind.LOST, "HTTP status 302"),
        ("slow", ExitKind.TIMEOUT, ""),
        ("long", ExitKind.OUTPUT, ""),
    ],
)
def test_a_service_at_fault_is_no_fault_of_the_code(remote, fault, exit_kind, reason):
    execution = run(remote, f"# FAULT {fault}")
    assert execution.exit == exit_kind
    assert reason in execution.stderr
    assert len(execution.stdout) <= 1 << 16


def test_the_request_is_that_of_the_protocol(remote):
    run(remote, "1", timeout_s=7.0)
    path, request = REQUESTS[-1]
    assert path == "/run_code"
    assert set(request) == {
        "code", "language", "compile_timeout", "run_timeout", "memory_limit_MB", "stdin", "files", "fetch_files",
    }  # fmt: skip
    assert (request["language"], request["run_timeout"], request["memory_limit_MB"]) == ("python", 7.0, 1024)
    assert "its isolation is what it was configured with" in remote.isolation.description


def test_a_service_that_is_not_there_is_refused():
    pool = PythonPool(isolation="remote", remote_url="http://127.0.0.1:1")
    with pytest.raises(SandboxUnavailableError, match=r"remote sandbox at http://127\.0\.0\.1:1"):
        asyncio.run(pool.start())
    pool.close()


def test_the_remote_sandbox_is_the_next_best_where_bubblewrap_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with service() as url:
        pool = PythonPool(remote_url=url)
        assert asyncio.run(pool.start()).level == "remote"
        pool.close()


def test_without_isolation_the_limits_hold_and_the_report_says_so(unsafe):
    assert asyncio.run(unsafe.start()).level == "none"
    assert run(unsafe, "while True: pass", timeout_s=1.0).exit == ExitKind.TIMEOUT
    assert run(unsafe, "b'x' * 10**10").exit == ExitKind.MEMORY
    flood = run(unsafe, "while True: print('x' * 1000)")
    assert flood.exit == ExitKind.OUTPUT
    assert len(flood.stdout) <= 1 << 16
    assert run(unsafe, "import os\nos.environ.get('PATH')").stdout == "None\n"
    assert "PATH" in os.environ
