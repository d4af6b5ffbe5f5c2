"""What the first iterations show of a run in which nothing can be learned: a line of the log each, once."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lightning.pytorch.utilities import rank_zero_only

from aepo_lightning.contracts.batch import Minibatch
from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.distributed.collectives import all_reduce
from aepo_lightning.errors import RewardError
from aepo_lightning.printable import printable

logger = logging.getLogger(__name__)

_ALL = 1 - 1e-9
"""A share over all ranks, up to rounding."""
_MAX_QUOTED = 200
_ROUNDING = 1e-6
"""What the mean of equal rewards may be away from them."""
_FEW = 16
"""Decisions; fewer may well be alike by chance."""
_OWN_SPELLING = "a model with a spelling of its own for calls may need `rollout=hermes`."


@dataclass(slots=True, kw_only=True)
class FirstIterations:
    """Looks at the rollouts of the first iterations.

    Attributes:
        num_iterations: So many are looked at; later ones may rightly have nothing to learn from.
    """

    num_iterations: int = 3
    _said: set[str] = field(default_factory=set)

    def look(
        self,
        iteration: int,
        trees: Sequence[RolloutTree],
        metrics: Mapping[str, float],
        minibatches: Iterable[Minibatch],
        tools: object = None,
    ) -> None:
        """Log what is wrong with an iteration, unless it was said before. Collective.

        Args:
            iteration: Its number, from 0 on.
            trees: Of this rank; the examples come from them.
            metrics: Of all ranks, under the names in which they are logged.
            minibatches: Of this rank.
            tools: Of the run; a `ToolRunner` that lists `specs` says what the policy may call.
        """
        if iteration >= self.num_iterations:
            return
        for kind, line in find_alarms(trees, metrics, minibatches, tools):
            if kind not in self._said:
                _say(iteration, line)
            self._said.add(kind)


def find_alarms(
    trees: Sequence[RolloutTree], metrics: Mapping[str, float], minibatches: Iterable[Minibatch], tools: object = None
) -> list[tuple[str, str]]:
    """Return a name and a line for everything that keeps a policy from learning of some rollouts. Collective.

    Args:
        trees: Of this rank; the examples come from them.
        metrics: Of all ranks, under the names in which they are logged.
        minibatches: Of this rank.
        tools: Of the run; a `ToolRunner` that lists `specs` says what the policy may call.
    """
    strength, *decisions = all_reduce([_strength(minibatches), *_decisions(trees)])
    found = {name.removeprefix("rollout/"): value for name, value in metrics.items() if name.startswith("rollout/")}
    tool_names = [spec.name for spec in getattr(tools, "specs", ())]
    answers, advantages = _in_answers(trees, found, tool_names), _in_advantages(trees, found, strength)
    return [*answers, *advantages, *_in_branches(found, *decisions)]


@rank_zero_only
def _say(iteration: int, line: str) -> None:
    logger.warning("Iteration %d: %s", iteration, line)


def _strength(minibatches: Iterable[Minibatch]) -> float:
    """Return the sum of the absolute advantages of all response tokens, those that are rounding errors left out."""
    batches = (batch for minibatch in minibatches for batch in minibatch.micro_batches)
    sizes = (batch.advantages.abs() for batch in batches if batch.advantages is not None)
    return sum(float(size[size > _ROUNDING].sum()) for size in sizes)


def _decisions(trees: Iterable[RolloutTree]) -> tuple[int, int]:
    """Return after how many tool results a branch could be wanted, and after how many it was."""
    wanted = [decision.num_wanted > 0 for tree in trees for decision in tree.decisions]
    return len(wanted), sum(wanted)


def _in_answers(
    trees: Sequence[RolloutTree], found: Mapping[str, float], tool_names: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Yield a name and a line for everything that is wrong with what the policy writes."""
    if found.get("tool_malformed_fraction", 0) + found.get("tool_unknown_tool_fraction", 0) >= _ALL:
        yield (
            "calls",
            f"every tool call is malformed.{_often(_problems(trees))} Compare the prompt with `chat_format`; "
            f"{_OWN_SPELLING}",
        )
    if tool_names and found.get("num_tool_calls", 1) == 0:
        yield (
            "silence",
            f"no trajectory calls a tool ({', '.join(tool_names)[:_MAX_QUOTED]}). See whether the prompt tells of them "
            f"(`rollout.chat_format.system_prompt`); {_OWN_SPELLING}",
        )
    if found.get("format_error_fraction", 0) >= _ALL:
        yield (
            "format",
            f"every answer breaks the reward's format.{_often(_reasons(trees))} See whether the prompt asks for it.",
        )
    if found.get("truncated_fraction", 0) + found.get("call_limit_fraction", 0) >= _ALL:
        yield (
            "ends",
            "no trajectory ended by itself: each reached the limit of tokens or calls. Raise `max_response_tokens` or "
            "`max_tool_calls`, or see whether the model knows the end of its messages (`model.eos_tokens`).",
        )


def _in_advantages(
    trees: Sequence[RolloutTree], found: Mapping[str, float], strength: float
) -> Iterator[tuple[str, str]]:
    """Yield a name and a line if nothing can be learned from the rewards."""
    if strength > 0:  # whatever the groups are like: advantages may be relative to other groups
        return
    if trees and all(len(tree.leaves) == 1 for tree in trees):
        yield (
            "group",
            "the group of a question has one trajectory, so that its advantage is zero whatever it earns. Set "
            "`algorithm.budget` to 2 or more.",
        )
    elif found.get("zero_variance_groups_fraction", 0) >= _ALL:
        rewards = sorted({reward for tree in trees for _, reward in tree.scored_leaves})
        shown = ", ".join(f"{reward:g}" for reward in rewards[:3])
        yield (
            "variance",
            f"all trajectories of each question earn the same ({shown}), so that every advantage is zero. Ask easier "
            "or harder questions, or look into the reward.",
        )
    else:
        yield (
            "trained",
            "no token has an advantage, so that nothing is trained. See if prompts leave room to answer.",
        )


def _problems(trees: Sequence[RolloutTree]) -> Iterator[str]:
    segments = (segment for tree in trees for segment in tree.segments)
    return (segment.tool_result.text for segment in segments if segment.tool_result is not None)


def _reasons(trees: Sequence[RolloutTree]) -> Iterator[str]:
    rewards = (leaf.reward for tree in trees for leaf in tree.leaves)
    return (reward.reason for reward in rewards if reward is not None and not reward.is_well_formed and reward.reason)


def _often(texts: Iterable[str]) -> str:
    """Return what most of the texts say, of which a terminal obeys nothing: policies and tools have written it."""
    most = Counter(texts).most_common(1)
    said = " ".join(most[0][0].split())[:_MAX_QUOTED] if most else ""
    return f" Most often: {printable(said)}" if most else ""


def _in_branches(found: Mapping[str, float], num_decisions: float, num_wanted: float) -> Iterator[tuple[str, str]]:
    """Yield a name and a line if the rule of branches makes no difference between tool results."""
    if num_decisions < _FEW:
        return
    if not num_wanted and found.get("branch_budget", 0) > 0:
        yield (
            "no branch",
            f"no branch was opened after {num_decisions:.0f} tool results, so that the budget of branches goes to "
            "fresh chains. Raise the probability of a branch (`algorithm.branch_policy`).",
        )
    if num_wanted == num_decisions:
        yield (
            "all branches",
            f"a branch was asked for after each of {num_decisions:.0f} tool results, whatever their entropy. Lower the "
            "probability of a branch (`algorithm.branch_policy`).",
        )


def warn_if_unscored(iteration: int, trees: Iterable[RolloutTree], metrics: Mapping[str, float]) -> None:
    """Log that no trajectory of an iteration has a reward, and why, if that is so.

    Args:
        iteration: Its number, from 0 on.
        trees: Of this rank; the most frequent reason comes from them.
        metrics: Of all ranks, under the names in which they are logged.
    """
    if _has_no_reward(metrics):
        _say(iteration, f"no trajectory has a reward, so that nothing is trained.{_often(_why_unscored(trees))}")


def refuse_unscored(num_asked: int, trees: Iterable[RolloutTree], metrics: Mapping[str, float]) -> None:
    """Stop a run whose last iteration has no trajectory with a reward.

    Args:
        num_asked: Questions that were asked in vain, over all ranks.
        trees: Of this rank and the last iteration.
        metrics: Of all ranks and the last iteration.

    Raises:
        RewardError: If no trajectory has a reward.
    """
    if _has_no_reward(metrics):
        raise RewardError(
            f"A trajectory must have a reward, but none of those of the {num_asked} questions asked last has one."
            f"{_often(_why_unscored(trees))} Mend the reward or the tools and continue with ckpt_path=last."
        )


def _has_no_reward(metrics: Mapping[str, float]) -> bool:
    return metrics.get("rollout/unscored_fraction", 0.0) >= _ALL


def _why_unscored(trees: Iterable[RolloutTree]) -> Iterator[str]:
    rewards = (leaf.reward for tree in trees for leaf in tree.leaves)
    return (reward.reason for reward in rewards if reward is not None and reward.reason)
