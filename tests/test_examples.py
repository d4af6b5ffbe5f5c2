import subprocess
import sys

import pytest

from tests.support.paths import ROOT


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_every_example_runs_from_start_to_end(name, tmp_path):
    short = ["--iterations", "1", "--cold-start-steps", "2", "--folder", str(tmp_path)]
    command = [sys.executable, f"examples/{name}", *short]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "val/pass@1" in done.stdout
