import pytest

from tests.support.commands import run_command
from tests.support.paths import ROOT

SAYS = {
    "callback_on_plain_module": "nats, drawn to quadrants.png",
    "evaluate_policy": "80 trajectories of 20 questions:",
    "objective_alone": "EBPO     keeps [[0.7, 1.0, 1.2], [0.0, 1.5, 0.0]]",
    "own_tool_reward_task": "'",
    "reading_a_tree": "after segment 2 go 2: rewards [1.0, 0.0]",
    "sampler_alone": "6 trajectories; planned: ",
    "swap_objective": "CISPO reward by iteration: ",
    "tool_alone": "five chains asked the same: 5 answers, the tool ran 1 time(s)",
    "tree_packing_elsewhere": "losses packed: ",
    "twenty_lines": "iterations 3, steps 12, reward ",
}


def test_every_example_is_run_and_explained():
    names = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
    assert names == sorted(SAYS)
    explained = (ROOT / "examples/README.md").read_text()
    assert [name for name in names if f"[`{name}.py`]({name}.py)" not in explained] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs_from_start_to_end_and_is_a_page_long(name, tmp_path):
    path = ROOT / f"examples/{name}.py"
    assert len(path.read_text().splitlines()) <= 60
    program = f"import os, runpy; os.chdir({str(tmp_path)!r}); runpy.run_path({str(path)!r}, run_name='__main__')"
    done = run_command("-c", program)
    assert done.returncode == 0, done.stderr
    assert SAYS[name] in done.stdout


def test_packed_and_padded_losses_are_the_same(tmp_path):
    lines = run_command("examples/tree_packing_elsewhere.py").stdout.splitlines()
    padded, packed = ([float(value) for value in line.split(":")[1].split()] for line in lines[-2:])
    assert len(padded) == 3
    assert packed == pytest.approx(padded, abs=1e-5)
