import pytest

from tests.support.commands import run_command
from tests.support.paths import ROOT


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_every_example_runs_from_start_to_end(name, tmp_path):
    short = ["--iterations", "1", "--cold-start-steps", "2", "--folder", str(tmp_path)]
    done = run_command(f"examples/{name}", *short)
    assert done.returncode == 0, done.stderr
    assert "val/pass@1" in done.stdout
