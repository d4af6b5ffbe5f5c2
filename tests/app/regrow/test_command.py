"""`aepo-regrow` on a real run: the saved continuation again, and another one after an edit."""

import json
import shutil

import pytest

from aepo_lightning.app.regrow.command import main
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.rollout import RolloutJournal
from tests.support.commands import run_command
from tests.support.viewed import data_of

SMALL = [
    "coldstart.num_steps=40",
    "data.questions_per_iteration=4",
    "data.num_val_questions=2",
    "experience.questions_per_step=4",
    "trainer.max_epochs=3",
    "callbacks.checkpoint.every_n_epochs=1",
    "callbacks.checkpoint.keep=-1",
    "algorithm.budget=4",
    "model.architecture.num_hidden_layers=1",
    "num_threads=1",
]


def regrown(capsys, *words):
    """Run the command; return its exit status and what it printed."""
    with pytest.raises(SystemExit) as end:
        main(list(map(str, words)))
    return end.value.code, capsys.readouterr().out


@pytest.mark.slow
def test_a_run_goes_on_from_its_nodes(tmp_path, capsys):
    folder = tmp_path / "run"
    done = run_command("train.py", *SMALL, f"run_dir={folder}")
    assert done.returncode == 0, done.stderr
    trees = [
        tree for number in range(3) for tree in RolloutJournal(folder / "rollouts").read(f"train-{number:05d}-rank0")
    ]
    tree, leaf = next(
        (tree, leaf)
        for tree in reversed(trees)
        for leaf in tree.leaves
        if len(leaf.seed_path) > 2 and tree.segments[leaf.segment_id].source is SegmentSource.POLICY
    )
    chain, question = "/".join(map(str, leaf.seed_path)), tree.question.question_id
    path = tree.path(leaf.segment_id)
    for words in ("seg=0", f"seg={path[2].segment_id}", "token=1"):
        status, told = regrown(capsys, folder, "--node", f"q={question}&leaf={chain}&{words}", "--offline", "--json")
        (new,) = json.loads(told)["regrown"]
        assert status == 0
        assert new["is_same"]
        assert [each["token_ids"] for each in new["segments"]] == [each.token_ids for each in path]
        assert (new["reward"], new["calls"]["refused"]) == (leaf.reward.reward, 0)
        assert new["largest_logprob_gap"] < 1e-4

    node = f"q={question}&leaf={chain}&seg={path[2].segment_id}"
    html = tmp_path / "new.html"
    words = (folder, "--node", node, "--edit", "e1 e1 e1", "--samples", 2, "--html", html)
    status, told = regrown(capsys, *words)
    assert status == 0
    assert told.count("<result> e1 e1 e1 </result>") >= 2
    assert "result of 'search'" in told
    assert "those that grew the tree" in told
    assert len(data_of(html.read_text(encoding="utf-8"))["piece-0"][0]["leaves"]) == 3

    shutil.rmtree(folder / "rollouts" / "weights")
    version = tree.weights_version
    kept = next(path for path in (folder / "checkpoints").glob("*.ckpt") if f"{version - 1:04d}" in path.name)
    status, told = regrown(capsys, folder, "--node", node, "--json")
    weights = json.loads(told)["weights"]
    assert (status, weights) == (0, {"place": kept.name, "steps": version, "steps_of_the_tree": version})
    kept.unlink()
    _, told = regrown(capsys, folder, "--node", node)
    assert "1 fewer than those that grew the tree, which were not kept" in told
