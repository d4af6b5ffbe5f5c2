"""Pictures of rollouts: the tree of a question, entropy along trajectories, entropy by turn, histograms.

Each function returns a `Figure` of its own, which any thread may draw, without pyplot's global state. What others wrote
stands in them as ASCII and is never read as a formula.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tree import Leaf, RolloutTree, Segment

Picture = NDArray[np.uint8]
"""Rows, columns, and red, green, blue."""

_WIDTH, _DPI = 6, 120
"""A small sheet in many dots: TensorBoard shows pictures at half their size, where text must be read."""
_NUM_TICKS = 5
"""At most, and one more: drawing ticks is most of what a picture costs."""
_REWARDS = LinearSegmentedColormap.from_list("rewards", ["firebrick", "goldenrod", "forestgreen"])
_TOOL, _UNSCORED = "0.75", "0.6"


def rasterise(figure: Figure) -> Picture:
    """Return what a figure looks like."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def shown(text: str, most: int = 60) -> str:
    """Return the beginning of a text in characters that every font has."""
    plain = "".join(char if char.isprintable() else " " for char in text).encode("ascii", "backslashreplace").decode()
    return plain if len(plain) <= most else f"{plain[: most - 3]}..."


def draw_tree(tree: RolloutTree) -> Figure:
    """Draw a finished tree from left to right, in tokens after the prompt.

    A line is a segment: as wide as its share of the group's trajectories, coloured by their mean reward, grey where a
    tool wrote it. A circle is a branch point, a square the end of a trajectory in the colour of its reward.
    """
    leaves = _in_rows(tree)
    figure = Figure(figsize=(_WIDTH, 1 + 0.22 * max(len(leaves), 4)), dpi=_DPI)
    axes = figure.subplots()
    below = _leaves_below(tree, leaves)
    heights = {segment_id: float(np.mean(rows)) for segment_id, rows in below.items()}
    rewards = [leaf.reward.reward if leaf.reward is not None and leaf.is_scored else None for leaf in leaves]
    scored = [reward for reward in rewards if reward is not None]
    norm = Normalize(min(0.0, *scored, 0.0), max(1.0, *scored, 1.0))
    lines, widths, shades = [], [], []
    for segment in tree.segments[1:]:
        if (rows := below.get(segment.segment_id)) is None:
            continue
        lines.append(_line(tree, segment, heights))
        widths.append(1 + 7 * len(rows) / len(leaves))
        known = [reward for row in rows if (reward := rewards[row]) is not None]
        is_coloured = known and segment.source is not SegmentSource.TOOL
        shades.append(_REWARDS(norm(np.mean(known))) if is_coloured else _TOOL)
    axes.add_collection(LineCollection(lines, linewidths=widths, colors=shades, capstyle="butt"))
    _mark_points(axes, tree, heights)
    ends = [tree.segments[leaf.segment_id].end - tree.segments[0].end for leaf in leaves]
    colours = [_UNSCORED if each is None else _REWARDS(norm(each)) for each in rewards]
    axes.scatter(ends, range(len(ends)), marker="s", c=colours, edgecolors="black", s=36, zorder=3)
    axes.set_yticks(range(len(leaves)), [_label(leaf) for leaf in leaves], fontsize=7)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(_NUM_TICKS))
    axes.set_xlabel(
        "tokens after the prompt (grey: tool results; circle: branch point; red to green: reward)", fontsize=8
    )
    title = f"{shown(tree.question.question_id, 40)}: m = {tree.global_budget}, k - m = {tree.branch_budget}"
    axes.set_title(title, fontsize=9, parse_math=False)
    figure.subplots_adjust(
        left=0.2, right=0.98, bottom=0.45 / figure.get_figheight(), top=1 - 0.25 / figure.get_figheight()
    )
    return figure


def _line(tree: RolloutTree, segment: Segment, heights: Mapping[int, float]) -> list[tuple[float, float]]:
    """Return the corners of a segment's line, which begins at its parent's end."""
    assert segment.parent_id is not None, "the root is not drawn"
    start, parent = tree.segments[0].end, tree.segments[segment.parent_id]
    left, right, height = float(parent.end - start), float(segment.end - start), heights[segment.segment_id]
    return [(left, heights[parent.segment_id]), (left, height), (right, height)]


def _mark_points(axes: Axes, tree: RolloutTree, heights: Mapping[int, float]) -> None:
    points = [each for each in tree.segments[1:] if each.is_branch_point and each.segment_id in heights]
    x = [each.end - tree.segments[0].end for each in points]
    y = [heights[each.segment_id] for each in points]
    axes.scatter(x, y, marker="o", c="white", edgecolors="black", s=36, zorder=3)


def _label(leaf: Leaf) -> str:
    reward = f"{leaf.reward.reward:.2f}" if leaf.reward is not None and leaf.is_scored else "no reward"
    return f"{leaf.origin} {reward}"


def _in_rows(tree: RolloutTree) -> list[Leaf]:
    """Return the leaves so that those below any segment are neighbours: no line lies on that of another chain."""
    return sorted(tree.leaves, key=lambda leaf: [segment.segment_id for segment in tree.path(leaf.segment_id)])


def _leaves_below(tree: RolloutTree, leaves: Sequence[Leaf]) -> dict[int, list[int]]:
    """Return, for each segment on a path to a leaf, the rows of the leaves below it."""
    below: dict[int, list[int]] = {}
    for row, leaf in enumerate(leaves):
        for segment in tree.path(leaf.segment_id):
            below.setdefault(segment.segment_id, []).append(row)
    return below


def draw_entropies(tree: RolloutTree) -> Figure:
    """Draw the entropy along the best and the worst trajectory of a tree, tool results and branch points marked."""
    ranked = sorted(tree.scored_leaves, key=lambda pair: -pair[1])
    leaves = [leaf for leaf, _ in (ranked[:1] + ranked[-1:] if len(ranked) > 1 else ranked)] or tree.leaves[:1]
    figure = Figure(figsize=(_WIDTH, 0.8 + 1.3 * len(leaves)), dpi=_DPI)
    panels = figure.subplots(len(leaves), 1, squeeze=False)[:, 0]
    for axes, leaf in zip(panels, leaves, strict=True):
        _draw_path(axes, tree, leaf)
    panels[0].set_title(
        f"entropy along trajectories of {shown(tree.question.question_id, 40)}", fontsize=9, parse_math=False
    )
    panels[-1].set_xlabel("tokens after the prompt (grey: tool results; dashed: branch points)", fontsize=8)
    figure.subplots_adjust(left=0.11, right=0.98, bottom=0.45 / figure.get_figheight(), top=0.92, hspace=0.35)
    return figure


def _draw_path(axes: Axes, tree: RolloutTree, leaf: Leaf) -> None:
    path = tree.path(leaf.segment_id)
    start = left = path[0].end
    for segment in path[1:]:
        if segment.source is SegmentSource.POLICY:
            axes.plot(np.arange(left, segment.end) - start, segment.entropies, color="tab:blue", linewidth=1)
        else:
            axes.axvspan(left - start, segment.end - start, color="0.88")
            status = segment.tool_result.status if segment.tool_result is not None else ""
            axes.annotate(
                str(status),
                ((left + segment.end) / 2 - start, 0.94),
                fontsize=6,
                ha="center",
                va="top",
                xycoords=axes.get_xaxis_transform(),
            )
        if segment.is_branch_point:
            axes.axvline(segment.end - start, color="black", linestyle="--", linewidth=0.8)
        left = segment.end
    axes.xaxis.set_major_locator(MaxNLocator(_NUM_TICKS))
    axes.yaxis.set_major_locator(MaxNLocator(_NUM_TICKS))
    axes.set_ylabel(f"nats ({_label(leaf)})", fontsize=7)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, max(left - start, 1))


def draw_turns(by_iteration: Mapping[int, Sequence[float]]) -> Figure:
    """Draw mean entropy by turn and iteration as a heat map.

    Args:
        by_iteration: For each iteration, the mean entropy of each turn in nats, from the first on.
    """
    figure = Figure(figsize=(_WIDTH, 2.3), dpi=_DPI)
    axes = figure.subplots()
    first, last = min(by_iteration), max(by_iteration)
    num_turns = max(len(means) for means in by_iteration.values())
    cells = np.full((num_turns, last - first + 1), np.nan)
    for iteration, means in by_iteration.items():
        cells[: len(means), iteration - first] = means
    extent = (first - 0.5, last + 0.5, num_turns - 0.5, -0.5)
    image = axes.imshow(cells, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0, extent=extent)
    figure.colorbar(image, ax=axes, label="mean entropy (nats)", pad=0.02)
    axes.yaxis.set_major_locator(MaxNLocator(_NUM_TICKS, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(_NUM_TICKS, integer=True))
    axes.set_xlabel("iteration")
    axes.set_ylabel("tool results before")
    figure.subplots_adjust(left=0.1, right=1.02, bottom=0.2, top=0.96)
    return figure


def draw_histograms(trees: Sequence[RolloutTree]) -> Figure:
    """Draw how entropies of tokens, rewards, lengths and calls of trajectories are spread."""
    leaves = [(tree, leaf) for tree in trees for leaf in tree.leaves]
    columns: dict[str, Any] = {
        "entropy of a token (nats)": token_entropies(trees),
        "reward": [reward for tree in trees for _, reward in tree.scored_leaves],
        "response length (tokens)": [
            tree.segments[leaf.segment_id].end - tree.segments[0].end for tree, leaf in leaves
        ],
        "tool calls": [leaf.num_tool_calls for _, leaf in leaves],
    }
    figure = Figure(figsize=(_WIDTH, 3.4), dpi=_DPI)
    for axes, (name, values) in zip(figure.subplots(2, 2).flat, columns.items(), strict=True):
        if name == "tool calls":
            calls, counts = np.unique(np.asarray(values), return_counts=True)
            axes.bar(calls, counts)
        else:
            axes.hist(values, bins=30, histtype="stepfilled", log=name.startswith("entropy"))
        if axes.get_yscale() == "log":
            # Powers of ten as formulas, and small ticks, take longer than all the rest.
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(_NUM_TICKS))
        axes.xaxis.set_major_locator(MaxNLocator(_NUM_TICKS, integer=name == "tool calls"))
        axes.set_xlabel(name, fontsize=8)
    figure.subplots_adjust(left=0.09, right=0.98, bottom=0.12, top=0.97, hspace=0.45)
    return figure


def token_entropies(trees: Sequence[RolloutTree]) -> NDArray[np.float64]:
    """Return the entropy of every generated token, each counted once."""
    return np.array([entropy for tree in trees for segment in tree.segments for entropy in segment.entropies])


def turn_entropies(trees: Sequence[RolloutTree]) -> list[float]:
    """Return the mean entropy of the tokens after 0, 1, 2 ... turns with tool results; NaN where there are none."""
    totals: dict[int, float] = {}
    counts: dict[int, int] = {}
    for tree in trees:
        turns: list[int] = []
        for segment in tree.segments:  # parents come first
            parent = None if segment.parent_id is None else tree.segments[segment.parent_id]
            before = 0 if parent is None else turns[parent.segment_id]
            is_own = segment.source is SegmentSource.POLICY
            is_next = is_own and parent is not None and parent.source is SegmentSource.TOOL
            turns.append(before + is_next)
            totals[turns[-1]] = totals.get(turns[-1], 0.0) + sum(segment.entropies)
            counts[turns[-1]] = counts.get(turns[-1], 0) + len(segment.entropies)
    return [
        totals[turn] / counts[turn] if counts.get(turn) else float("nan") for turn in range(max(counts, default=-1) + 1)
    ]
