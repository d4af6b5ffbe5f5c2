"""What the first iterations show of a run in which nothing can be learned: a line of the log each, once."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from aepo_lightning.contracts.batch import Minibatch
from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.distributed.collectives import all_reduce

logger = logging.getLogger(__name__)

_ALL = 1 - 1e-9
"""A share over all ranks, up to rounding."""
_MAX_QUOTED = 200


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
        is_said: bool = True,
    ) -> None:
        """Log what is wrong with an iteration, unless it was said before. Collective.

        Args:
            iteration: Its number, from 0 on.
            trees: Of this rank; the examples come from them.
            metrics: Of all ranks, under the names in which they are logged.
            minibatches: Of this rank.
            is_said: Whether this rank writes to the log.
        """
        if iteration >= self.num_iterations:
            return
        (strength,) = all_reduce([_strength(minibatches)])
        for kind, line in _findings(trees, metrics, strength):
            if kind not in self._said and is_said:
                logger.warning("Iteration %d: %s", iteration, line)
            self._said.add(kind)


def _strength(minibatches: Iterable[Minibatch]) -> float:
    """Return the sum of the absolute advantages of all response tokens."""
    batches = (batch for minibatch in minibatches for batch in minibatch.micro_batches)
    return sum(float(batch.advantages.abs().sum()) for batch in batches if batch.advantages is not None)


def _findings(trees: Sequence[RolloutTree], metrics: Mapping[str, float], strength: float) -> Iterator[tuple[str, str]]:
    """Yield a name and a line for everything that is wrong."""
    found = {name.removeprefix("rollout/"): value for name, value in metrics.items() if name.startswith("rollout/")}
    if found.get("tool_malformed_fraction", 0) + found.get("tool_unknown_tool_fraction", 0) >= _ALL:
        yield "calls", f"every tool call is malformed.{_often(_problems(trees))} Compare the prompt with `chat_format`."
    if found.get("format_error_fraction", 0) >= _ALL:
        yield "format", f"every answer breaks the reward's format.{_often(_reasons(trees))}{_own_spelling(trees)}"
    if found.get("truncated_fraction", 0) + found.get("call_limit_fraction", 0) >= _ALL:
        yield (
            "ends",
            "no trajectory ended by itself: each reached the limit of tokens or calls. Raise `max_response_tokens` or "
            "`max_tool_calls`, or see whether the model knows the end of its messages (`model.eos_tokens`).",
        )
    if trees and all(len(tree.leaves) == 1 for tree in trees):
        yield (
            "group",
            "the group of a question has one trajectory, so that its advantage is zero whatever it earns. Set "
            "`algorithm.budget` to 2 or more.",
        )
    elif found.get("zero_variance_groups_fraction", 0) >= _ALL:
        rewards = sorted({reward for tree in trees for reward in tree.rewards})
        shown = ", ".join(f"{reward:g}" for reward in rewards[:3])
        yield (
            "variance",
            f"all trajectories of each question earn the same ({shown}), so that every advantage is zero. Ask easier "
            "or harder questions, or look into the reward.",
        )
    elif strength == 0:
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
    """Return what most of the texts say."""
    most = Counter(texts).most_common(1)
    return f" Most often: {' '.join(most[0][0].split())[:_MAX_QUOTED]}" if most else ""


def _own_spelling(trees: Sequence[RolloutTree]) -> str:
    calls = sum(leaf.num_tool_calls for tree in trees for leaf in tree.leaves)
    return (
        "" if calls else " None calls a tool: a model with a spelling of its own for calls may need `rollout=hermes`."
    )
