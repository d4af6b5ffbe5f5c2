import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from aepo_lightning.callbacks.drawing import (
    draw_entropies,
    draw_histograms,
    draw_tree,
    draw_turns,
    rasterise,
    shown,
    token_entropies,
    turn_entropies,
)
from aepo_lightning.contracts.question import SegmentSource
from tests.callbacks.test_rollout_logger import HOSTILE, spoilt
from tests.callbacks.test_rollout_logger import make_tree as branched_tree
from tests.support.training import make_tree, policy_turn, tool_turn


def test_a_tree_shows_shares_rewards_and_branch_points():
    tree = branched_tree(rewards=(0.0, 1.0))
    (axes,) = draw_tree(tree).axes
    lines, points, ends = axes.collections
    assert isinstance(lines, LineCollection)
    # Prompt of 3 tokens; a turn of 2 and a result of 1 that both leaves share, then one turn of 1 each.
    assert [path.vertices[-1].tolist() for path in lines.get_paths()] == [[2, 0.5], [3, 0.5], [4, 0], [4, 1]]
    assert list(lines.get_linewidths()) == [8, 8, 4.5, 4.5]
    assert points.get_offsets().tolist() == [[3, 0.5]]
    assert ends.get_offsets().tolist() == [[4, 0], [4, 1]]
    red, green = ends.get_facecolors()[:, :2]
    assert red[0] > red[1]
    assert green[1] > green[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["probe 0.00", "branch 1.00"]


def test_no_line_of_a_tree_lies_on_that_of_another_chain():
    # The middle one of three leaves, as they are listed, left the chain before the other two parted.
    tree = make_tree([[policy_turn(1)]], [1.0])
    first = tree.segments[1].segment_id
    rest = [tree.add(first, SegmentSource.POLICY, [1], logprobs=[0.0], entropies=[0.0]).segment_id for _ in range(2)]
    ends = [tree.add(rest[0], SegmentSource.POLICY, [1], logprobs=[0.0], entropies=[0.0]) for _ in range(2)]
    chosen = [ends[0].segment_id, rest[1], ends[1].segment_id]
    tree.leaves = [replace(tree.leaves[0], segment_id=segment_id) for segment_id in chosen]
    (axes,) = draw_tree(tree).axes
    lines = axes.collections[0].get_paths()
    assert [path.vertices[-1].tolist() for path in lines[1:]] == [[2, 0.5], [2, 2], [3, 0], [3, 1]]


def test_entropies_stand_at_their_tokens_beside_tool_results_and_branch_points():
    best, worst = draw_entropies(branched_tree(rewards=(0.0, 1.0))).axes
    assert "branch 1.00" in best.get_ylabel()
    assert "probe 0.00" in worst.get_ylabel()
    first, branch_point, last = best.lines
    assert first.get_xydata().tolist() == [[0, 0.5], [1, 1.0]]
    assert last.get_xydata().tolist() == [[3, 0.25]]
    assert list(branch_point.get_xdata()) == [3, 3]
    assert [text.get_text() for text in best.texts] == ["timeout"]


def test_turns_are_counted_by_results_before_them():
    # Entropies are a hundredth of the token.
    paths = [[policy_turn(10, 30), tool_turn(1), tool_turn(1), policy_turn(50)], [policy_turn(80)]]
    trees = [make_tree(paths, [0.0, 1.0]), make_tree([[policy_turn(40), tool_turn(1)]], [0.0])]
    assert turn_entropies(trees) == pytest.approx([1.6 / 4, 0.5])
    assert sorted(token_entropies(trees)) == pytest.approx([0.1, 0.3, 0.4, 0.5, 0.8])
    assert turn_entropies([]) == []


def test_the_heat_map_leaves_a_gap_where_there_was_no_such_turn():
    axes, _ = draw_turns({4: [0.5, 0.25], 6: [1.0]}).axes
    (image,) = axes.images
    cells = np.ma.filled(image.get_array(), math.nan)
    np.testing.assert_equal(cells, [[0.5, math.nan, 1.0], [0.25, math.nan, math.nan]])


@pytest.mark.parametrize("text", [*HOSTILE.values(), "$\\frac{x$", "\U0001f600 \u4e16"], ids=repr)
def test_what_others_wrote_is_shown_in_plain_characters(text):
    plain = shown(text)
    assert plain.isascii()
    assert plain.isprintable()
    assert len(plain) <= 60


def test_titles_are_no_formulas_and_trees_without_rewards_are_drawn():
    tree = spoilt("$\\frac{x$ \x1b \u202e")
    for leaf in tree.leaves:
        leaf.reward = replace(leaf.reward, is_scored=False)
    pictures = [rasterise(draw(tree)) for draw in (draw_tree, draw_entropies)] + [rasterise(draw_histograms([tree]))]
    assert all(picture.shape[2] == 3 and picture.std() > 0 for picture in pictures)
