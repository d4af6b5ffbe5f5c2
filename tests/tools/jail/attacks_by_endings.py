"""Attacks on how a call ends: its deadline, its output, its exit, the echo of its value, and code that is none."""

from tests.tools.jail.attack import Attack

TIME = [
    Attack("endless loop", "while True:\n    pass", "timeout", timeout_s=0.4),
    Attack(
        "deaf loop",
        "import signal\nfor s in range(1, 65):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n"
        "    except Exception:\n        pass\nwhile True:\n    pass",
        "timeout",
        timeout_s=0.4,
    ),
    Attack("endless sleep", "import time\ntime.sleep(999)", "timeout", timeout_s=0.3),
    Attack("huge power", "x = 9**9**8", "timeout", timeout_s=0.4),
    Attack("slow pattern", "import re\nre.match('(a+)+$', 'a' * 99 + 'b')", "timeout", timeout_s=0.4),
    Attack("waits for input", "import os\nr, w = os.pipe()\nos.read(r, 1)", "timeout", timeout_s=0.3),
    Attack(
        "hangs at exit",
        "import atexit, time\natexit.register(time.sleep, 99)\nprint('done')",
        "timeout",
        "done",
        timeout_s=5.0,
    ),
    Attack(
        "thread hangs at exit",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()",
        "timeout",
        timeout_s=0.5,
    ),
    Attack(
        "thread writes for ever",
        "import os, threading, time\ndef write():\n    while True:\n        os.write(1, b'y')\n"
        "        time.sleep(0.01)\n"
        "threading.Thread(target=write, daemon=True).start()\nwhile True:\n    pass",
        "timeout",
        "y",
        timeout_s=5.0,
    ),
    Attack("closes its streams", "import os, time\nos.close(1)\nos.close(2)\ntime.sleep(99)", "timeout", timeout_s=0.4),
    Attack(
        "catches everything",
        "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass",
        "timeout",
        timeout_s=0.4,
    ),
]
OUTPUT = [
    Attack(
        "1 GB of output",
        "import sys\nfor _ in range(1024):\n    sys.stdout.write('x' * (1 << 20))",
        "output",
        "x{65536}",
    ),
    Attack(
        "1 GB of errors",
        "import sys\nfor _ in range(1024):\n    sys.stderr.write('x' * (1 << 20))",
        "output",
        "x{65536}",
    ),
    Attack("1 GB by descriptor", "import os\nwhile True:\n    os.write(1, b'x' * (1 << 16))", "output", "x{65536}"),
    Attack("endless lines", "while True:\n    print('line')", "output", "line\nline"),
    Attack("not UTF-8", "import os\nos.write(1, bytes(range(128, 256)))\nNone", "ok", "\ufffd+None"),
    Attack(
        "1 GB that is not UTF-8", "import os\nwhile True:\n    os.write(1, b'\\xff' * 65536)", "output", "\ufffd{65536}"
    ),
    Attack("half a character at the limit", "print('x' + 'é' * 40000)", "output", r"\Axé{32767}\ufffd\Z"),
    Attack("just fits", "import os\nprint(end='' if os.write(1, b'x' * 65536) else '')", "ok", r"\Ax{65536}\Z"),
    Attack("one byte too much", "import os\nos.write(1, b'x' * 65537)", "output", r"\Ax{65536}\Z"),
    Attack(
        "takes its output back",
        "import os\nr = os.open('/proc/self/fd/1', os.O_RDONLY | os.O_NONBLOCK)\nprint('taken')\nx = os.read(r, 9)",
        "ok|error",  # whoever reads first
        r"\A(taken\n)?\Z|BlockingIOError",
    ),
    Attack(
        "hangs up and comes back",
        "import os, time\nr = os.open('/proc/self/fd/1', os.O_RDONLY | os.O_NONBLOCK)\nos.close(1)\ntime.sleep(0.1)\n"
        "w = os.open(f'/proc/self/fd/{r}', os.O_WRONLY)\nos.write(w, b'late')\nos._exit(0)",
        "ok",
        "late",
    ),
    Attack("half a surrogate", "print('\\ud800')", "ok", "ud800"),
    Attack("zero bytes", "print('a\\0b')", "ok", "a\0b"),
    Attack(
        "no descriptors to write to",
        "import os\nfor d in range(3, 128):\n    try:\n        os.write(d, b'x')\n"
        "        print('open', d)\n    except OSError:\n        pass",
        "ok",
        r"\A\Z",
    ),
]
CRASHES = [
    Attack("segmentation fault", "import ctypes\nctypes.string_at(0)", "killed"),
    Attack("abort", "import os\nos.abort()", "killed"),
    Attack(
        "stack overflow",
        "import sys\nsys.setrecursionlimit(10**9)\nf = lambda: f()\nf()",
        "killed|memory|error|timeout",
        timeout_s=0.5,
    ),
    *(Attack(f"exit code {code}", f"import os\nos._exit({code})", "error") for code in (137, 139, 152, 241, 242)),
    Attack("says that memory was short", "import sys\nprint('MemoryError', file=sys.stderr)\nsys.exit(1)", "error"),
    Attack("memory was short and it went on", "try:\n    b'x' * 10**10\nexcept MemoryError:\n    pass\n0", "ok"),
    Attack("will not exit", "import os\nos._exit = lambda code: None\nprint('x')", "ok", r"\Ax$"),
    Attack("exit code", "import os\nos._exit(7)", "error"),
    Attack(
        "no builtins",
        "__builtins__.clear() if isinstance(__builtins__, dict) else __builtins__.__dict__.clear()\n1",
        "error",
    ),
    Attack("no streams", "import sys\ndel sys.stdout, sys.stderr\n1/0", "error"),
    Attack(
        "raises while it is reported",
        "class E(Exception):\n    def __str__(self):\n        raise self\nraise E",
        "error",
        "E",
    ),
    Attack("exit with a text", "import sys\nsys.exit('why')", "error", r"\Awhy$"),
    Attack("exit code beyond a byte", "import sys\nsys.exit(256 + 7)", "error"),
    Attack("exit by name", "print('x')\nexit()\nprint('y')", "ok", r"\Ax$"),
    Attack("quit by name", "quit(3)", "error"),
    Attack(
        "exit code that raises",
        "import sys\nclass I(int):\n    def __and__(s, o):\n        1 / 0\nsys.exit(I(3))",
        "error",
    ),
    Attack("alarm", "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0.1)\nwhile True:\n    pass", "killed"),
    Attack("trace that raises", "import sys\nsys.settrace(lambda *a: 1 / 0)\n1", "error|ok"),
    Attack("interrupts itself", "raise KeyboardInterrupt", "error", "KeyboardInterrupt"),
]
ECHO = [
    Attack(
        "text that hangs",
        "class A:\n    def __repr__(s):\n        while True:\n            pass\nA()",
        "timeout",
        timeout_s=0.4,
    ),
    Attack("text that raises", "class A:\n    def __repr__(s):\n        1 / 0\nA()", "error", "ZeroDivisionError"),
    Attack("text that is none", "class A:\n    def __repr__(s):\n        return 1\nA()", "error", "TypeError"),
    Attack("text of 10 GB", "class A:\n    def __repr__(s):\n        return 'x' * 10**10\nA()", "memory"),
    Attack("endless list", "import itertools\nlist(itertools.count())", "memory"),
    Attack("endless generator", "import itertools\n(x for x in itertools.count())", "ok", "<generator"),
    Attack("list in itself", "x = []\nx.append(x)\nx", "ok", r"\[\[\.\.\.\]\]"),
    Attack("no print", "print = None\n1", "error", "TypeError"),
]
SOURCE = [
    Attack("zero byte in the code", "print(1)\0", "error", "null bytes"),
    Attack("half a surrogate in the code", "print('a\ud800b')", "ok", r"\Aa\?b$"),
    Attack("no code", "", "ok", r"\A\Z"),
    Attack("no Python", "}{", "error", "SyntaxError"),
    Attack("10000 brackets", "(" * 10000 + ")" * 10000, "error|memory"),
    Attack("200000 signs", "-" * 200000 + "1", "error|memory|killed"),
    Attack("long number", "1" * 10000, "error", "SyntaxError|ValueError"),
]
