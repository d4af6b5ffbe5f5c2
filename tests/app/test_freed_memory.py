import ctypes
import platform

import pytest

from aepo_lightning.app import freed_memory
from aepo_lightning.app.freed_memory import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no thresholds")
def test_glibc_takes_the_thresholds():
    assert keep_freed_memory()


def test_other_c_libraries_are_left_as_they_are(monkeypatch):
    class WithoutMallopt:
        def __init__(self, name):
            del name

    monkeypatch.setattr(ctypes, "CDLL", WithoutMallopt)
    assert not freed_memory.keep_freed_memory()
