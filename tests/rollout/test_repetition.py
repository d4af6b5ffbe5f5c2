import pytest

from aepo_lightning.rollout.repetition import count_repeated
from aepo_lightning.rollout.statistics import summarise_trees
from tests.support.training import make_tree, policy_turn, tool_turn


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], (0, 0)),
        ([5, 5, 5], (0, 0)),
        ([5, 5, 5, 5, 5, 5], (2, 3)),  # 5555 three times
        ([1, 2, 3, 4, 5, 6, 7], (0, 4)),
        ([1, 2, 3, 4, 1, 2, 3, 4], (1, 5)),  # 1234 again; 2341, 3412, 4123 are new
    ],
)
def test_runs_of_four_tokens_count_as_said_again(tokens, expected):
    assert count_repeated(tokens) == expected


def test_each_turn_counts_by_itself_and_tool_results_do_not():
    same = [1, 2, 3, 4]
    tree = make_tree([[policy_turn(*same), tool_turn(5, 5, 5, 5, 5), policy_turn(*same, *same)]], [1.0])
    assert summarise_trees([tree]).means()["repetition_fraction"] == 1 / 6
    assert "repetition_fraction" not in summarise_trees([make_tree([[policy_turn(1, 2)]], [1.0])]).means()
