"""What a call leaves behind in its worker: nothing, not even in the memory that later children are copies of."""

import pytest

from aepo_lightning.tools.jail import ExitKind
from tests.tools.jail.parts import needs_bubblewrap, run

pytestmark = needs_bubblewrap
MARKERS = ("WrittenByAnEarlierCall", "CodeOfAnEarlierCall", "InputOfAnEarlierCall", "ErrorOfAnEarlierCall")
EARLIER = """
CodeOfAnEarlierCall = 1
import sys
sys.stdin.read()
print("Written" + "ByAnEarlierCall" * 2)
print("Error" + "OfAnEarlierCall", file=sys.stderr)
"""
# Looks for markers with every byte raised by one in memory with every byte raised by one, so as not to find itself.
SEARCH = """
import ctypes
raised = bytes((byte + 1) % 256 for byte in range(256))
counts = dict.fromkeys(MARKERS, 0)
for line in open("/proc/self/maps"):
    area, mode = line.split()[:2]
    if mode.startswith("rw"):
        start, end = (int(number, 16) for number in area.split("-"))
        memory = ctypes.string_at(start, end - start).translate(raised)
        counts = {marker: count + memory.count(marker) for marker, count in counts.items()}
print(list(counts.values()))
"""
FRAMES = """
import sys
frame, found = sys._getframe(), set()
while frame := frame.f_back:
    found |= {name for name, value in frame.f_locals.items() if "WrittenBy" + "AnEarlier" in repr(value)}
print(sorted(found - {"job"}))
"""


def search():
    markers = [bytes(byte + 1 for byte in marker.encode()) for marker in MARKERS]
    return f"MARKERS = {markers!r}\n{SEARCH}"


def counts(execution):
    assert execution.exit == ExitKind.OK, execution.stderr
    return [int(count) for count in execution.stdout.strip("[]\n").split(",")]


def test_the_search_finds_what_a_call_has_in_its_own_memory(small):
    own = "".join(f"kept_{number} = {marker!r}\n" for number, marker in enumerate(MARKERS))
    assert all(counts(run(small, own + search())))


@pytest.mark.parametrize("ending", ["", "1 / 0", "import os\nos.abort()", "print('x' * 10**6)"])
def test_nothing_of_an_earlier_call_is_in_the_memory_of_the_next(small, ending):
    run(small, EARLIER + ending, stdin=MARKERS[2])
    assert counts(run(small, search())) == [0, 0, 0, 0]


def test_no_frame_below_the_code_holds_an_earlier_answer(small):
    run(small, EARLIER)
    assert run(small, FRAMES).stdout == "[]\n"
