"""What a batch of rollout trees looks like in numbers.

Every figure is kept as a total and a weight, so that the mean over ranks is exact. Names and meanings stand in
`docs/metrics.md`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tool import ToolResult, ToolStatus
from aepo_lightning.contracts.tree import BranchDecision, Leaf, LeafOrigin, RolloutTree, Segment
from aepo_lightning.rollout.repetition import count_repeated
from aepo_lightning.rollout.spread import (
    NEAR_ALPHA,
    NUM_BUSIEST,
    asked_in_a_row,
    branch_reward_lift,
    decision_before,
    expected_concentration,
    sibling_variances,
)
from aepo_lightning.rollout.turn_entropy import TurnEntropy

_DEEP = 4
"""Branches after this many tool calls or more are counted together."""
_ENTROPY, _DURATION = "entropy_p{}", "tool_duration_p{}_s"
PERCENTILES: Mapping[str, tuple[int, ...]] = {_ENTROPY: (10, 90), _DURATION: (50, 95)}
"""Names of samples, with a place for the percentile, and those of them that are logged."""
_ASKED, _OVER_CHANCE, _RATE = "{}: asked", "{}_over_chance", "branch_rate"


def with_chance(means: Mapping[str, float]) -> dict[str, float]:
    """Return means with shares of some decisions that ask for a branch over that of all of them.

    A rule that branches at random asks as often wherever it is, and after whatever it did, so it gives 1. What the
    budget then allows does not matter: where branches fall is decided by when it is spent, under any rule.

    Args:
        means: Over all trees. Shares of some decisions are replaced.
    """
    rate, suffix = means.get(_RATE, 0.0), _ASKED.format("")
    ratios = {_OVER_CHANCE.format(name.removesuffix(suffix)): name for name in means if name.endswith(suffix)}
    rest = {name: value for name, value in means.items() if not name.endswith(suffix)}
    return rest | {name: means[source] / rate for name, source in ratios.items() if rate}


@dataclass(slots=True)
class Tally:
    """Named means, each as a total and a weight, and named samples."""

    totals: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    """Every observation of what percentiles are logged of, under the names of `PERCENTILES`."""

    def add(self, name: str, value: int | float, weight: int | float = 1) -> None:
        """Add an observation of `name`."""
        self.totals[name] = self.totals.get(name, 0.0) + value * weight
        self.weights[name] = self.weights.get(name, 0.0) + weight

    def share(self, name: str, part: int | float, whole: int | float) -> None:
        """Add `part` of `whole` to the share `name`."""
        self.totals[name] = self.totals.get(name, 0.0) + part
        self.weights[name] = self.weights.get(name, 0.0) + whole

    def observe(self, name: str, values: Sequence[float]) -> None:
        """Add observations to the sample `name`."""
        self.samples.setdefault(name, []).extend(values)

    def means(self) -> dict[str, float]:
        """Return every mean whose weight is not zero, as `with_chance` has them."""
        means = {name: total / self.weights[name] for name, total in self.totals.items() if self.weights[name]}
        return with_chance(means)


def summarise_trees(trees: Iterable[RolloutTree], turn_entropy: TurnEntropy | None = None) -> Tally:
    """Measure a batch of finished trees.

    Args:
        trees: What to measure.
        turn_entropy: Says how many of a turn's first tokens count where the entropy after a tool result is asked for.
            Default: as `TurnEntropy()`.
    """
    num_first = (turn_entropy or TurnEntropy()).num_tokens
    tally = Tally()
    for tree in trees:
        _add_rewards(tally, tree)
        _add_siblings(tally, tree)
        _add_budget(tally, tree)
        _add_decisions(tally, tree)
        _add_tokens(tally, tree, num_first)
        _add_tools(tally, tree)
    return tally


def _add_rewards(tally: Tally, tree: RolloutTree) -> None:
    rewards = [reward for _, reward in tree.scored_leaves]
    if rewards:
        tally.share("zero_variance_groups_fraction", float(max(rewards) == min(rewards)), 1)
    for leaf in tree.leaves:
        assert leaf.reward is not None, "`tree.rewards` has checked it"
        tally.add("unscored_fraction", float(not leaf.is_scored))
        tally.add("failed_reward_fraction", float(leaf.reward.has_failed))
        tally.add("failed_tools_fraction", float(_met_outage(tree, leaf)))
        tally.add("truncated_fraction", float(leaf.stop_reason is StopReason.LENGTH))
        tally.add("timed_out_fraction", float(leaf.stop_reason is StopReason.TIMEOUT))
        tally.add("call_limit_fraction", float(leaf.stop_reason is StopReason.CALL_LIMIT))
        tally.add("malformed_end_fraction", float(leaf.stop_reason is StopReason.MALFORMED_CALL))
        tally.add("num_tool_calls", leaf.num_tool_calls)
        if not leaf.is_scored:
            continue
        for name, value in leaf.reward.terms.items():
            tally.add(f"reward_{name}", value)
        tally.add("reward", leaf.reward.reward)
        tally.add("f1", leaf.reward.f1)
        tally.add("correct_fraction", float(leaf.reward.is_correct))
        tally.add("format_error_fraction", float(not leaf.reward.is_well_formed))
        if leaf.origin is LeafOrigin.BRANCH:
            tally.add("branch_reward", leaf.reward.reward)
        else:
            tally.add("trunk_reward", leaf.reward.reward)


def _met_outage(tree: RolloutTree, leaf: Leaf) -> bool:
    results = (segment.tool_result for segment in tree.path(leaf.segment_id))
    return any(result is not None and result.is_outage for result in results)


def _add_siblings(tally: Tally, tree: RolloutTree) -> None:
    within, total = sibling_variances(tree, tree.scored_leaves)
    tally.share("sibling_reward_spread", within, total)
    tally.share("branch_reward_lift", *branch_reward_lift(tree, tree.scored_leaves))


def _add_budget(tally: Tally, tree: RolloutTree) -> None:
    origins = Counter(leaf.origin for leaf in tree.leaves)
    tally.add("global_budget", tree.global_budget)
    tally.add("branch_budget", tree.branch_budget)
    tally.add("num_branches", origins[LeafOrigin.BRANCH])
    tally.add("num_top_ups", origins[LeafOrigin.TOP_UP])
    tally.add("root_entropy", tree.root_entropy)
    for entropy in tree.tool_entropies:
        tally.add("tool_entropy", entropy)


def _add_decisions(tally: Tally, tree: RolloutTree) -> None:
    num_branches = len(tree.branch_depths)
    num_decisions = len(tree.decisions)
    busiest = sum(n for _, n in Counter(tree.branch_roots).most_common(NUM_BUSIEST))
    tally.share("branch_concentration", busiest, num_branches)
    expected = expected_concentration(tree.decisions) * num_branches
    tally.share("expected_branch_concentration", expected, num_branches)
    tally.share("branch_concentration_over_chance", busiest, expected)
    tally.share(_ASKED.format("consecutive_branches"), *asked_in_a_row(tree.decisions))
    for name, number in _by_depth(tree.branch_depths).items():
        tally.share(f"{name}_fraction", number, num_branches)
    wanted = _by_depth([decision.turn for decision in tree.decisions if decision.num_wanted])
    for name, number in _by_depth([decision.turn for decision in tree.decisions]).items():
        tally.share(_ASKED.format(name), wanted[name], number)
    is_high = [decision.is_high_entropy for decision in tree.decisions]
    tally.share("high_entropy_fraction", sum(is_high), num_decisions)
    tally.share("consecutive_high_entropy_fraction", len(_in_high_entropy_runs(tree.decisions)), num_decisions)
    tally.share(_RATE, sum(decision.num_wanted > 0 for decision in tree.decisions), num_decisions)
    shifts = [decision.score_shift for decision in tree.decisions if decision.score_shift is not None]
    tally.share("near_alpha_fraction", sum(abs(shift) < NEAR_ALPHA for shift in shifts), len(shifts))
    tally.share("branch_refused_fraction", sum(bool(decision.problem) for decision in tree.decisions), num_decisions)
    tally.share("penalised_fraction", sum(decision.is_penalised for decision in tree.decisions), num_decisions)


def _by_depth(depths: Sequence[int]) -> dict[str, int]:
    """Return how many of the depths are each of the first few, and deeper."""
    counts = {f"branches_at_depth_{depth}": depths.count(depth) for depth in range(1, _DEEP)}
    return counts | {"branches_deeper": sum(depth >= _DEEP for depth in depths)}


def _in_high_entropy_runs(decisions: Sequence[BranchDecision]) -> set[tuple[tuple[int | str, ...], int]]:
    """Return chain and turn of every high-entropy decision with another one directly before or after it.

    The chain of a branch begins with its trunk's decisions, up to the one that opened it.
    """
    high = {(decision.seed_path, decision.turn) for decision in decisions if decision.is_high_entropy}
    found = set()
    for place in high:
        before = decision_before(*place)
        if before in high:
            found |= {before, place}
    return found


def _actions(tree: RolloutTree, leaf: Leaf) -> tuple[str, ...]:
    """Return what a trajectory did: its tool calls, then its answer."""
    calls = (segment.tool_call for segment in tree.path(leaf.segment_id))
    answer = "" if leaf.reward is None else leaf.reward.answer
    return (*(f"{call.tool}: {call.text}" for call in calls if call is not None), answer)


def _add_tokens(tally: Tally, tree: RolloutTree, num_first: int) -> None:
    paths = [tree.path(leaf.segment_id) for leaf in tree.leaves]
    in_trajectories = sum(len(each.token_ids) for path in paths for each in path if _is_own(each))
    tally.share("generated_token_fraction", tree.num_generated_tokens, in_trajectories)
    tally.share("prefix_cache_hit_fraction", tree.num_cached_tokens, tree.num_prompt_tokens)
    written = {tuple(token for each in path for token in each.token_ids) for path in paths}
    tally.add("num_distinct_trajectories", len(written))
    tally.add("num_distinct_actions", len({_actions(tree, leaf) for leaf in tree.leaves}))
    for path in paths:
        tally.add("response_length", path[-1].end - path[0].end)
    for segment in tree.segments:
        if _is_own(segment):
            tally.share("entropy", sum(segment.entropies), len(segment.entropies))
            tally.share("repetition_fraction", *count_repeated(segment.token_ids))
            tally.observe(_ENTROPY, segment.entropies)
            window, results = segment.entropies[:num_first], _results_before(tree, segment)
            if results:
                tally.share("entropy_after_tool", sum(window), len(window))
            for status in sorted({result.status for result in results if result is not None}):
                tally.share(f"entropy_after_{status}", sum(window), len(window))


def _is_own(segment: Segment) -> bool:
    return segment.source is SegmentSource.POLICY


def _results_before(tree: RolloutTree, segment: Segment) -> list[ToolResult | None]:
    """Return the results of the calls of the turn before, for each segment that holds one; none at the start."""
    results = []
    while segment.parent_id is not None and tree.segments[segment.parent_id].source is SegmentSource.TOOL:
        segment = tree.segments[segment.parent_id]
        results.append(segment.tool_result)
    return results


def _add_tools(tally: Tally, tree: RolloutTree) -> None:
    called = (segment.tool_result for segment in tree.segments if segment.tool_call is not None)
    results = [result for result in called if result is not None]
    statuses, number = Counter(result.status for result in results), len(results)
    for status in ToolStatus:
        tally.share(f"tool_{status}_fraction", statuses[status], number)
    tally.share("tool_cached_fraction", sum(result.is_cached for result in results), number)
    tally.share("tool_shared_fraction", sum(result.is_shared for result in results), number)
    tally.share("tool_queue_s", sum(result.queue_s for result in results), number)
    tally.share("tool_attempts", sum(result.num_attempts for result in results), number)
    durations = [result.duration_s for result in results]
    tally.share("tool_duration_s", sum(durations), number)
    tally.observe(_DURATION, durations)


def pass_at_k(num_correct: int, num_samples: int, k: int) -> float:
    """Return the unbiased estimate of the chance that at least one of `k` samples is correct.

    Args:
        num_correct: Correct samples, in [0, num_samples].
        num_samples: Samples drawn.
        k: Size of the subset, in [1, num_samples].

    Raises:
        ValueError: If a count is out of range.

    References:
        Evaluating Large Language Models Trained on Code, arXiv:2107.03374, eq. 1.
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(
            "`num_correct` and `k` must satisfy 0 <= num_correct <= num_samples and 1 <= k <= num_samples, "
            f"but got {num_correct} and {k} of {num_samples}. Draw more samples or lower `k`."
        )
    miss = 1.0
    for i in range(num_samples - num_correct + 1, num_samples + 1):
        miss *= 1.0 - k / i
    return 1.0 - miss


def pass_rates(trees: Sequence[RolloutTree], ks: Sequence[int]) -> Mapping[str, float]:
    """Return `pass@k` for each k, averaged over trees whose leaves are independent samples.

    Samples without a reward are not counted. A tree with fewer than k others is in no mean of k.
    """
    tally = Tally()
    for tree in trees:
        outputs = [leaf.reward for leaf, _ in tree.scored_leaves if leaf.reward is not None]
        for k in ks:
            if k <= len(outputs):
                tally.add(f"pass@{k}", pass_at_k(sum(each.is_correct for each in outputs), len(outputs), k))
    return tally.means()
