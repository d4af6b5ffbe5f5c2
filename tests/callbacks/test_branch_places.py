import pytest

from aepo_lightning.callbacks import BranchPlaces
from aepo_lightning.callbacks.branch_places import results_before
from aepo_lightning.contracts.question import Question, SegmentSource
from aepo_lightning.contracts.tool import ToolCall, ToolResult
from aepo_lightning.contracts.tree import BranchDecision, RolloutTree
from aepo_lightning.errors import ConfigError
from tests.support.training import make_leaf

TRUNK, BRANCH = ("r", 0), ("r", 0, "b", 1, 0)


def decision(path, turn, num_opened):
    return BranchDecision(
        seed_path=path,
        root=0,
        turn=turn,
        entropy=1.0,
        initial_entropy=0.5,
        consecutive_branches=0,
        num_wanted=num_opened,
        num_opened=num_opened,
    )


def tree_of(*decisions):
    """A trunk that was told `fog`, then `k1`; a branch after the fog that was told `k0`, then `pit`."""
    tree = RolloutTree(question=Question(question_id="q", messages=(), answers=()), decisions=list(decisions))
    call = ToolCall(tool="search", text="w")
    after = tree.add(None, SegmentSource.PROMPT, [1]).segment_id
    for path, parent, texts in ((TRUNK, after, ("fog", "k1")), (BRANCH, 2, ("k0", "pit"))):
        for text in texts:
            parent = tree.add(parent, SegmentSource.POLICY, [2], logprobs=[0.0], entropies=[0.0]).segment_id
            told = {"tool_call": call, "tool_result": ToolResult(text=text)}
            parent = tree.add(parent, SegmentSource.TOOL, [3], **told).segment_id
        leaf = make_leaf(parent, 0.0)
        leaf.seed_path = path
        tree.leaves.append(leaf)
    return tree


DECISIONS = (
    *(decision(TRUNK, 1, 1), decision(TRUNK, 2, 0)),
    *(decision(BRANCH, 2, 3), decision(BRANCH, 3, 1)),
)


def test_a_decision_stands_beside_the_result_that_it_followed():
    texts = [text for _, text in results_before(tree_of(*DECISIONS))]
    assert texts == ["fog", "k1", "k0", "pit"]


def test_a_decision_of_a_chain_that_is_no_trajectory_is_left_out():
    assert results_before(tree_of(decision(("r", 7), 1, 1), decision(TRUNK, 3, 1))) == []


def test_branches_and_decisions_are_counted_by_kind_of_result():
    found = BranchPlaces(choice=r"\bk\d", noise="fog").count([tree_of(*DECISIONS), tree_of(DECISIONS[0])])
    assert found == {
        "decisions_on_noise_fraction": 2 / 4,  # the pit is neither
        "branches_on_noise_fraction": 2 / 5,
    }


def test_what_has_no_denominator_is_left_out():
    assert BranchPlaces(choice="k", noise="fog").count([tree_of()]) == {}


@pytest.mark.parametrize("name", ["choice", "noise"])
def test_a_pattern_that_is_none_is_refused(name):
    with pytest.raises(ConfigError, match=rf"`{name}` must be a regular expression, but got '\('"):
        BranchPlaces(**{"choice": "k", "noise": "fog", name: "("})
