"""What hostile code tries, and what must come of it."""

from tests.tools.jail.attack import DENIED, Attack, denied
from tests.tools.jail.attacks_by_endings import CRASHES, ECHO, OUTPUT, SOURCE, TIME

READS = [
    denied(f"read {path}", f"open({path!r}).read()")
    for path in (
        "/etc/shadow", "/etc/passwd", "/etc/hostname", "/root/.bashrc", "/root/.ssh/id_rsa", "/var/log/dpkg.log",
        "/proc/1/environ", "/proc/1/maps", "/proc/1/mem", "/proc/self/mem", "/proc/kcore", "/proc/kmsg", "/dev/mem",
        "/dev/vda", "/dev/tty", "/sys/kernel/notes", "/run/docker.sock",
    )
]  # fmt: skip
LISTS = [denied(f"list {path}", f"import os\nos.listdir({path!r})") for path in ("/", "/root", "/home", "/proc/1/fd")]
WRITES = [
    denied(f"write {path}", f"open({path!r}, 'w').write('1')")
    for path in (
        "/x", "/usr/x", "/etc/x", "/dev/x", "/dev/shm/x", "/var/x", "/jail/x", "/proc/sys/kernel/core_pattern",
        "/proc/sysrq-trigger", "/proc/self/oom_score_adj", "/proc/1/oom_score_adj",
    )
]  # fmt: skip
SOCKETS = [
    denied(f"socket {family}/{kind}", f"import socket\nsocket.socket({family}, {kind})")
    for family, kind in ((1, 1), (1, 2), (2, 1), (2, 2), (10, 1), (16, 3), (17, 3), (38, 5), (40, 1), (15, 3))
]
PROCESSES = [
    denied("fork", "import os\nos.fork()"),
    denied("recursive forks", "import os\nwhile True:\n    os.fork()"),
    denied("start a program", "import os\nos.execv('/bin/sh', ['sh', '-c', 'id'])"),
    denied("subprocess", "import subprocess\nsubprocess.run(['id'])"),
    denied("shell", "import subprocess\nsubprocess.run('id', shell=True)"),
    denied("spawn", "import os\nos.posix_spawn('/bin/true', ['true'], {})"),
    denied("multiprocessing", "import multiprocessing as m\nm.get_context('fork').Process(target=print).start()"),
    denied(
        "daemon", "import os\nif os.fork() == 0:\n    os.setsid()\n    os.fork() or os.execv('/bin/sleep', ['x', '9'])"
    ),
    denied("session of its own", "import os\nos.setsid()"),
    denied("group of its own", "import os\nos.setpgid(0, 0)"),
    denied("group of the zygote", "import os\nos.setpgid(0, 1)"),
    Attack("pty", "import pty\npty.fork()", "error", "OSError|" + DENIED),
    denied("set-user file", "import os\nopen('s', 'w')\nos.chmod('s', 0o6755)\nos.execv('s', ['s'])"),
    Attack(
        "1000 threads",
        "import threading, time\nfor i in range(1000):\n    threading.Thread(target=time.sleep, "
        "args=(9,), daemon=True).start()",
        "error",
        "can't start new thread",
    ),
    Attack(
        "fork in C",
        "import ctypes\nl = ctypes.CDLL(None, use_errno=True)\nl.fork(), ctypes.get_errno()",
        "ok",
        r"\(-1, 1\)",
    ),
    Attack(
        "vfork in C",
        "import ctypes\nl = ctypes.CDLL(None, use_errno=True)\nl.vfork(), ctypes.get_errno()",
        "ok",
        r"\(-1, 1\)",
    ),
]
SIGNALS = [
    denied(f"signal {target}", f"import os\nos.kill({target}, 9)") for target in (1, -1, 0, "os.getppid()", 2, 3)
] + [
    denied("stop the zygote", "import os\nos.kill(os.getppid(), 19)"),
    denied("signal itself", "import signal\nsignal.raise_signal(9)"),
    denied("slow the zygote down", "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)"),
    Attack(
        "priority back",
        "import os, time\nwhile time.process_time() < 0.3:\n    pass\ntime.sleep(0.2)\n"
        "print('nice', os.getpriority(os.PRIO_PROCESS, 0))\n"
        "os.setpriority(os.PRIO_PROCESS, 0, 0)",
        "error",
        r"(?s)nice (5|10|15).*PermissionError",
    ),
    denied("signal group", "import os\nos.killpg(1, 9)"),
    denied("handle of a process", "import os\nos.pidfd_open(1)"),
    denied("lower nice", "import os\nos.nice(-5)"),
    denied("other scheduler", "import os\nos.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))"),
    Attack(
        "own signals by descriptor", "import fcntl, os\nfcntl.fcntl(0, fcntl.F_SETOWN, 1)", "error", "PermissionError"
    ),
]
MEMORY = [
    Attack("10 GB of bytes", "b'x' * 10**10", "memory", "MemoryError"),
    Attack("10 GB list", "[0] * (10**10)", "memory", "MemoryError"),
    Attack("slow leak", "kept = []\nwhile True:\n    kept.append(bytearray(1 << 22))", "memory", "MemoryError"),
    Attack("leak of small objects", "kept = []\nwhile True:\n    kept.append([None] * 99999)", "memory", "MemoryError"),
    Attack("10 GB mapping", "import mmap\nmmap.mmap(-1, 10**10)", "error", "Cannot allocate|OSError"),
    Attack(
        "zip bomb in memory",
        "import zlib\nd = zlib.decompressobj()\nb = zlib.compress(bytes(1 << 27), 9)\n"
        "kept = [zlib.decompress(b) for _ in range(99)]",
        "memory",
        "MemoryError",
    ),
    Attack(
        "10 GB shared mapping",
        "import mmap\nmmap.mmap(-1, 10**10, mmap.MAP_SHARED)",
        "error",
        "Cannot allocate|OSError",
    ),
    Attack(
        "grow its input",
        "import os\nf = os.open('/proc/self/fd/0', os.O_RDWR)\nwhile True:\n    os.write(f, bytes(1 << 20))",
        "error",
        "too large",
    ),
    Attack(
        "full pipes",
        "import fcntl, os\nfor i in range(99):\n    r, w = os.pipe()\n    os.set_blocking(w, False)\n"
        "    try:\n        fcntl.fcntl(w, 1031, 1 << 20)\n    except OSError:\n        pass\n"
        "    os.write(w, bytes(1 << 20))",
        "error",
        "Too many open files",
    ),
    Attack("deep recursion", "f = lambda: f()\nf()", "error", "RecursionError"),
    Attack(
        "raise the limit",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "error",
        "not allowed|Permission",
    ),
    Attack(
        "raise soft limit by C",
        "import resource\nresource.prlimit(0, resource.RLIMIT_NPROC, (99, 99))",
        "error",
        DENIED,
    ),
]
NUMPY = [
    Attack("10 GB array", "import numpy\nnumpy.ones(10**10 // 8)", "memory", "MemoryError"),
    Attack(
        "array leak", "import numpy\nk = []\nwhile True:\n    k.append(numpy.ones(1 << 19))", "memory", "MemoryError"
    ),
]
DISK = [
    Attack(
        "fill the disk", "for i in range(99):\n    open(str(i), 'wb').write(bytes(1 << 20))", "error", "No space left"
    ),
    Attack("huge file", "open('f', 'wb').truncate(1 << 40)", "error", "too large"),
    Attack("long file", "f = open('f', 'wb')\nwhile True:\n    f.write(bytes(1 << 20))", "error", "too large|No space"),
    Attack(
        "fill /tmp",
        "f = open('/tmp/f', 'wb')\nwhile True:\n    f.write(bytes(1 << 20))",
        "error",
        "too large|No space|No such",
    ),
    Attack("fill /dev/shm", "f = open('/dev/shm/f', 'wb')\nwhile True:\n    f.write(bytes(1 << 20))", "error", DENIED),
    Attack("many files", "i = 0\nwhile True:\n    i += 1\n    open(f'f{i}', 'w').close()", "files"),
    Attack(
        "many hidden files",
        "import os\nkept = []\nfor d in range(9999):\n    os.mkdir(f'd{d}')\n    os.chmod(f'd{d}', 0)\n"
        "import time\ntime.sleep(9)",
        "files",
    ),
    Attack(
        "zip bomb on disk",
        "import zipfile\nwith zipfile.ZipFile('z', 'w', 8) as z:\n    z.writestr('a', bytes(1 << 27))\n"
        "zipfile.ZipFile('z').extractall()",
        "error",
        "No space|too large",
    ),
    Attack(
        "300 folders deep",
        "import os\nfor i in range(300):\n    os.mkdir('d' * 50)\n    os.chdir('d' * 50)\n"
        "open('f', 'w')\nfor i in range(300):\n    os.chdir('..')\n    os.chmod('d' * 50, 0)",
        "ok",
    ),
    Attack(
        "3000 folders deep", "import os\nfor i in range(3000):\n    os.mkdir('d' * 200)\n    os.chdir('d' * 200)", "ok"
    ),
    Attack("sparse files", "for i in range(99):\n    open(str(i), 'wb').truncate(30 << 20)", "ok"),
    Attack(
        "deleted files",
        "import os\nk = []\nfor i in range(999):\n    k.append(open('f', 'w'))\n    os.unlink('f')",
        "error",
        "Too many open files",
    ),
    Attack("move the work folder", "import os\nos.rename('/jail/work', '/jail/w')", "error", "OSError|" + DENIED),
    denied("named pipe out", "import os\nos.mkfifo('/jail/p')"),
    denied("times of the work folder", "import os\nos.utime('/jail', (1, 1))"),
    Attack("device node", "import os\nos.mknod('d', 0o20666, os.makedev(1, 1))", "error", DENIED),
    Attack("link out", "import os\nos.symlink('/etc/shadow', 's')\nopen('s').read()", "error", DENIED),
    Attack("hard link out", "import os\nos.link('/usr/bin/env', 'l')", "error", "OSError|" + DENIED),
    Attack(
        "bad modes",
        "import os\nos.mkdir('d')\nopen('d/f', 'w')\nos.chmod('d', 0)\nos.umask(0o777)\nos.mkdir('e')",
        "ok",
    ),
    Attack(
        "names that are no text",
        "import os\nopen(b'\\xff\\xfe', 'w')\nos.mkdir(b'\\xfe')\nos.mkdir(b'\\xfe/\\xfd')",
        "ok",
    ),
]
LOCKS = [
    denied("lock a host file", "import fcntl\nfcntl.flock(open('/usr/bin/env'), fcntl.LOCK_EX)"),
    denied("lock by description", "import fcntl\nfcntl.fcntl(open('/usr/bin/env'), 37, bytes(32))"),
    denied("lease a host file", "import fcntl\nfcntl.fcntl(open('/usr/bin/env'), fcntl.F_SETLEASE, fcntl.F_RDLCK)"),
    denied("watch a host folder", "import fcntl, os\nfcntl.fcntl(os.open('/usr', 0), fcntl.F_NOTIFY, 1)"),
    denied("hint about a host file", "import fcntl\nfcntl.fcntl(open('/usr/bin/env'), 1036, bytes(8))"),
]
FORBIDDEN_CALLS = {  # x86_64
    "flock": 73,
    "socketpair": 53, "ptrace": 101, "personality": 135, "pivot_root": 155, "chroot": 161, "mount": 165,
    "umount2": 166, "swapon": 167, "reboot": 169, "sethostname": 170, "iopl": 172, "ioperm": 173, "init_module": 175,
    "acct": 163, "settimeofday": 164, "setrlimit": 160, "modify_ldt": 154, "shmget": 29, "semget": 64, "msgget": 68,
    "mq_open": 240, "add_key": 248, "request_key": 249, "keyctl": 250, "mbind": 237, "inotify_init1": 294,
    "unshare": 272, "setns": 308, "perf_event_open": 298, "fanotify_init": 300, "name_to_handle_at": 303,
    "open_by_handle_at": 304, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "memfd_create": 319,
    "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323, "memfd_secret": 447, "pidfd_send_signal": 424,
    "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "pidfd_open": 434, "openat2": 437,
    "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443,
    "landlock_create_ruleset": 444, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "setuid": 105,
    "setresuid": 117, "capset": 126, "setsid": 112, "setpriority": 141, "sched_setaffinity": 203, "vmsplice": 278,
    "splice": 275, "tee": 276, "timer_create": 222, "syslog": 103, "mlock": 149, "chown": 92, "mknod": 133,
    "setxattr": 188, "clone3": 435, "execveat": 322, "fork": 57, "vfork": 58, "seccomp": 317,
    "after the last": 470,
    "kill": 62, "setpgid": 109, "sched_setscheduler": 144, "sched_setparam": 142, "sched_setattr": 314,
    "ioprio_set": 251,
    "process_mrelease": 448, "landlock_restrict_self": 446, "clock_settime": 227, "adjtimex": 159, "setgid": 106,
    "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "sendmsg": 46, "recvmsg": 47, "bind": 49, "listen": 50,
    "shmat": 30, "semop": 65, "msgsnd": 69, "fchown": 93, "utime": 132, "prlimit beyond": 0x40000000 | 302,
    "x32 write": 0x40000001, "x32 fork": 0x40000039,
}  # fmt: skip
CALLS_IN_C = f"""
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for name, number in {FORBIDDEN_CALLS!r}.items():
    ctypes.set_errno(0)
    result = libc.syscall(number, 0, 0, 0, 0, 0, 0)
    if result != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        print("ALLOWED", name, result, ctypes.get_errno())
print("tried")
"""
CALL_OF_ANOTHER_MACHINE = """
import ctypes, mmap
code = bytes.fromhex("b814000000cd80c3")  # mov eax, 20 (getpid on i386); int 0x80; ret
page = mmap.mmap(-1, 4096, prot=7)
page.write(code)
ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
print("ran")
"""
CLONE_WITH_FLAGS = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for flags in (17, 0x10000000 | 17, 0x20000 | 17, 0x40000000, 0x2000000, 0x00010000 | 0x800 | 0x100 | 0x10000000):
    ctypes.set_errno(0)
    assert libc.syscall(56, flags, 0, 0, 0, 0) == -1 and ctypes.get_errno() == errno.EPERM, hex(flags)
print("tried")
"""
TERMINAL = """
import fcntl
for request in (0x5412, 0x541C, 0x540E, 0x8933, 0x5423):  # TIOCSTI, TIOCLINUX, TIOCSCTTY, SIOCGIFINDEX, TIOCSETD
    try:
        fcntl.ioctl(0, request, b"x" * 64)
        print("ALLOWED", hex(request))
    except OSError as error:
        assert error.errno == 25, error
print("tried")
"""
KERNEL = [
    Attack("forbidden calls", CALLS_IN_C, "ok", r"\Atried"),
    Attack("call of another machine", CALL_OF_ANOTHER_MACHINE, "killed", r"\A\Z"),
    Attack("clone with flags", CLONE_WITH_FLAGS, "ok", r"\Atried"),
]
EVERYWHERE = [
    Attack("terminal", TERMINAL, "ok", r"\Atried"),
    Attack("only loopback", "import os\nopen('/proc/net/dev').read().count(':')", "ok", r"\A1$"),
    Attack(
        "other processes",
        "import os\n{n for n in os.listdir('/proc') if n.isdigit()} == {'1', str(os.getpid())}",
        "ok",
        "True",
    ),
    Attack("become root", "import os\nos.setuid(0)", "error", DENIED),
    Attack("change group", "import os\nos.setgroups([0])", "error", DENIED),
    Attack(
        "capabilities",
        "[l.split()[1] for l in open('/proc/self/status') if l.startswith(('CapEff', 'CapPrm', 'CapAmb'))]",
        "ok",
        r"(0{16}.*){3}",
    ),
]
ALL = [
    *READS, *LISTS, *WRITES, *SOCKETS, *PROCESSES, *SIGNALS, *MEMORY, *TIME, *OUTPUT, *DISK, *LOCKS, *CRASHES,
    *ECHO, *SOURCE, *EVERYWHERE,
]  # fmt: skip
