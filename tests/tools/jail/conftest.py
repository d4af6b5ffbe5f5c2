"""One pool for all attacks: an attack that changed it would show in those after it."""

import os

import pytest

from aepo_lightning.tools.jail import PythonPool


@pytest.fixture(scope="package")
def pool():
    os.environ["A_SECRET_OF_THE_HOST"] = "do-not-leak"
    shared = PythonPool(num_workers=3, timeout_s=20.0, memory_mb=512)
    yield shared
    shared.close()
    del os.environ["A_SECRET_OF_THE_HOST"]


@pytest.fixture
def small():
    made = PythonPool(num_workers=1, timeout_s=20.0, preload=())
    yield made
    made.close()
