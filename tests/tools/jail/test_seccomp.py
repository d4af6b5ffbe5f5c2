"""The filter, run step by step on a processor of our own: every call, on both machines, without a kernel."""

import errno
import platform
import re
import struct
from pathlib import Path

import pytest

from aepo_lightning.tools.jail.inside import syscalls
from aepo_lightning.tools.jail.inside.seccomp import build_filter, machines, pack_filter

ALLOW, KILL = 0x7FFF0000, 0x80000000
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
TABLES = {"x86_64": syscalls.X86_64, "aarch64": syscalls.AARCH64}
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
THREAD_FLAGS = 0x3D0F00  # what pthread_create asks for
FORK_FLAGS = 0x1200011  # what fork asks for


def verdict(program, number, arguments=(), architecture=ARCHITECTURES["x86_64"]):
    """What the kernel does with one call: the loads and jumps of classic BPF."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    accumulator, position = 0, 0
    while True:
        operation, if_true, if_false, constant = program[position]
        position += 1
        if operation == 0x06:
            return constant
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, constant)
            continue
        holds = {0x15: accumulator == constant, 0x35: accumulator >= constant, 0x45: accumulator & constant != 0}
        position += if_true if holds[operation] else if_false


def refused(number=errno.EPERM):
    return 0x00050000 | number


@pytest.mark.parametrize("machine", machines())
def test_exactly_the_listed_calls_are_allowed(machine):
    program, table = build_filter(machine), TABLES[machine]
    plain = {number for name, number in table.items() if name not in syscalls.CHECKED}
    checked = {table[name] for name in syscalls.CHECKED}
    for number in set(range(syscalls.LAST_KNOWN + 1)) - checked:
        expected = ALLOW if number in plain else refused()
        assert verdict(program, number, architecture=ARCHITECTURES[machine]) == expected, number


@pytest.mark.parametrize("machine", machines())
@pytest.mark.parametrize(
    "name, arguments, expected",
    [
        ("clone", [THREAD_FLAGS], ALLOW),
        ("clone", [FORK_FLAGS], refused()),
        ("clone", [17], refused()),
        ("clone", [THREAD_FLAGS | 0x10000000], refused()),
        ("clone", [THREAD_FLAGS | 0x02000000], refused()),
        ("clone3", [0], refused(errno.ENOSYS)),
        ("fcntl", [0, 1], ALLOW),
        ("fcntl", [0, 8], refused()),
        ("fcntl", [0, 15], refused()),
        ("ioctl", [0, 0x5401], ALLOW),
        ("ioctl", [0, 0x5412], refused(errno.ENOTTY)),
        ("prctl", [15], ALLOW),
        ("prctl", [4, 1], refused()),
        ("prctl", [38], refused()),
        ("prlimit64", [0, 9, 0], ALLOW),
        ("prlimit64", [0, 9, 0x7FFF00000000], refused()),
        ("prlimit64", [0, 9, 1], refused()),
    ],
    ids=str,
)
def test_arguments_are_looked_at(machine, name, arguments, expected):
    number = TABLES[machine][name]
    assert verdict(build_filter(machine), number, arguments, ARCHITECTURES[machine]) == expected


@pytest.mark.parametrize("machine", machines())
def test_calls_of_another_machine_kill_the_process(machine):
    for architecture in (0x40000003, 0x40000028, *set(ARCHITECTURES.values()) - {ARCHITECTURES[machine]}):
        assert verdict(build_filter(machine), TABLES[machine]["read"], architecture=architecture) == KILL


def test_calls_of_the_x32_interface_are_refused():
    assert verdict(build_filter("x86_64"), 0x40000000 | syscalls.X86_64["read"]) == refused()


@pytest.mark.parametrize("number", [syscalls.LAST_KNOWN + 1, 1000, 0x3FFFFFFF])
def test_calls_of_the_future_are_unknown(number):
    assert verdict(build_filter("x86_64"), number) == refused(errno.ENOSYS)


@pytest.mark.parametrize("machine", machines())
def test_the_program_fits_the_kernel(machine):
    program = build_filter(machine)
    assert len(program) <= 4096
    assert len(pack_filter(program)) == 8 * len(program)
    for position, (_, if_true, if_false, _) in enumerate(program[:-1]):
        assert position + 1 + max(if_true, if_false) < len(program)
    assert program[-1] == (0x06, 0, 0, refused())


@pytest.mark.parametrize("machine", machines())
def test_numbers_are_those_of_the_headers(machine):
    if not HEADERS[machine].exists() or (machine == "x86_64" and platform.machine() != "x86_64"):
        pytest.skip("no kernel headers on this machine")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", HEADERS[machine].read_text()))
    found.setdefault("newfstatat", found.get("fstatat"))
    known = {name: number for name, number in TABLES[machine].items() if name in found}
    assert len(known) > 120
    assert known == {name: int(found[name]) for name in known}
