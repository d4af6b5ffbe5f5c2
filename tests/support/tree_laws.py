"""Laws that every finished rollout tree and every branch decision obey, checked against slow references."""

from collections import Counter, defaultdict

import pytest

from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tree import LeafOrigin
from aepo_lightning.rollout import derive_uniform


def chain_of(leaf):
    """(trunk's path, birth turn) of a branch, or (None, None) of a chain from the root."""
    path = leaf.seed_path
    return (path[:-3], path[-2]) if len(path) > 2 else (None, None)


def turns_of(tree, leaf):
    return [segment for segment in tree.path(leaf.segment_id) if segment.source is SegmentSource.POLICY]


def check_tree(tree, parts):
    """Exactly k scored leaves whose origins add up, and paths that are well formed."""
    settings, k = parts.settings, parts.settings.budget
    origins = Counter(leaf.origin for leaf in tree.leaves)
    probes = int(parts.allocator.needs_probe and settings.keep_probe)
    assert len(tree.leaves) == k
    assert 1 <= tree.global_budget <= k
    assert tree.global_budget + tree.branch_budget == k
    assert origins[LeafOrigin.PROBE] == probes
    assert origins[LeafOrigin.PROBE] + origins[LeafOrigin.ROOT] == tree.global_budget
    assert origins[LeafOrigin.BRANCH] + origins[LeafOrigin.TOP_UP] == tree.branch_budget
    assert len(tree.branch_depths) == len(tree.branch_roots) == origins[LeafOrigin.BRANCH]
    assert tree.num_discarded_tokens == 0 or not settings.keep_probe
    paths = [leaf.seed_path for leaf in tree.leaves]
    assert paths == sorted(set(paths))
    on_paths = {segment.segment_id for leaf in tree.leaves for segment in tree.path(leaf.segment_id)}
    assert on_paths == set(range(len(tree.segments)))
    for leaf in tree.leaves:
        check_path(tree, leaf, parts)
    check_branch_points(tree)


def check_path(tree, leaf, parts):
    settings, path = parts.settings, tree.path(leaf.segment_id)
    expected = [SegmentSource.PROMPT, SegmentSource.POLICY]
    expected += [SegmentSource.TOOL, SegmentSource.POLICY] * leaf.num_tool_calls
    assert [segment.source for segment in path] == expected
    trajectory = tree.trajectory(leaf)
    length = len(trajectory.token_ids)
    assert length <= parts.engine.max_model_len
    assert length - trajectory.prompt_length <= settings.max_response_tokens
    assert trajectory.token_ids == tree.token_ids(leaf.segment_id) == [t for s in path for t in s.token_ids]
    assert trajectory.is_sampled == [s.source is SegmentSource.POLICY for s in path for _ in s.token_ids]
    for values in (trajectory.logprobs, trajectory.entropies):
        assert len(values) == length
        assert all(value == 0 for value, own in zip(values, trajectory.is_sampled, strict=True) if not own)
    assert leaf.reward is not None
    if settings.on_call_limit == "stop":
        assert leaf.num_tool_calls <= settings.max_tool_calls
    if leaf.stop_reason is StopReason.CALL_LIMIT:
        assert settings.on_call_limit == "stop"
        assert leaf.num_tool_calls == settings.max_tool_calls


def check_branch_points(tree):
    """A branch shares its trunk's segments, tool calls included, up to the tool result of its birth turn."""
    leaves = {leaf.seed_path: leaf for leaf in tree.leaves}
    branch_points, depths, roots = set(), [], []
    for leaf in tree.leaves:
        trunk, birth = chain_of(leaf)
        assert (leaf.origin is LeafOrigin.BRANCH) == (trunk is not None)
        if trunk is None:
            continue
        own, shared = tree.path(leaf.segment_id), tree.path(leaves[trunk].segment_id)
        size = 1 + 2 * birth
        assert [s.segment_id for s in own[:size]] == [s.segment_id for s in shared[:size]]
        assert own[size].segment_id != shared[size].segment_id
        assert own[size - 1].source is SegmentSource.TOOL
        branch_points.add(own[size - 1].segment_id)
        depths.append(birth)
        roots.append(leaf.seed_path[1])
    assert branch_points == {segment.segment_id for segment in tree.segments if segment.is_branch_point}
    assert sorted(depths) == sorted(tree.branch_depths)
    assert sorted(roots) == sorted(tree.branch_roots)


def first_entropies(turn, num_tokens=2):
    """The measure that `builders.make_parts` sets: the mean entropy of the first two tokens in nats."""
    window = turn.entropies[:num_tokens]
    return sum(window) / len(window)


def expected_decisions(tree, parts):
    """For each chain and each turn after a tool result that it decides at: the context, without the scope's counter.

    Worked out from the finished tree alone: (path, turn) -> (entropy, initial entropy, l per chain, branches opened).
    """
    opened = Counter((path, turn) for path, turn in map(chain_of, tree.leaves) if path is not None)
    streaks, expected = {}, {}
    for leaf in sorted(tree.leaves, key=lambda leaf: len(leaf.seed_path)):  # trunks before their branches
        trunk, birth = chain_of(leaf)
        turns = turns_of(tree, leaf)
        own_start = (birth or 0) if parts.settings.branch_baseline == "own" else 0
        streak = 0 if trunk is None else streaks[trunk, birth]
        for turn in range(1 if trunk is None else birth + 1, len(turns)):
            signal = turn - 1 if parts.settings.branch_signal == "before_tool" else turn
            number = opened[leaf.seed_path, turn]
            expected[leaf.seed_path, turn] = (
                first_entropies(turns[signal]),
                first_entropies(turns[own_start]),
                streak,
                number,
            )
            streak = streak + 1 if number else 0
            streaks[leaf.seed_path, turn] = streak
    return expected


def check_decisions(trees, parts, seed, contexts):
    """Every recorded branch decision is one that the trees explain, and none is missing."""
    expected = {}
    for tree in trees:
        for (path, turn), values in expected_decisions(tree, parts).items():
            question = tree.question.question_id
            expected[derive_uniform(seed, question, *path, turn, "decision")] = (question, *values)
    assert {context.uniform for context in contexts} == set(expected)
    assert len(contexts) == len(expected)
    question_streaks = defaultdict(int)
    for context in contexts:
        question, entropy, initial, streak, number = expected[context.uniform]
        assert context.entropy == pytest.approx(entropy)
        assert context.initial_entropy == pytest.approx(initial)
        if parts.settings.penalty_scope == "question":
            streak = question_streaks[question]
        assert context.consecutive_branches == streak
        question_streaks[question] = question_streaks[question] + 1 if number else 0
