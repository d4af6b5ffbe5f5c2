"""What advantages see of trajectories that come near the limit of their length, or were cut off there."""

from dataclasses import dataclass, replace

from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.overlong import check_overlong_lengths, overlong_lengths, overlong_share
from aepo_lightning.contracts.tree import Leaf, RolloutTree
from aepo_lightning.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlongPenalty:
    """Soft punishment of long trajectories, and the choice not to train on those that were cut off.

    A length is that of everything after the prompt, tool results included, as `max_response_tokens` counts it. The
    reward that is logged stays as it was given; `OverlongTerm` is the same punishment as a part of the reward.

    Raises:
        ConfigError: If a number is out of range.

    References:
        DAPO, arXiv:2503.14476, section 3.4, eq. 13 and "overlong filtering". Departures: the lengths default to the
        limit of the rollouts and the paper's fifth of it, and a trajectory that was cut off before its limit, because a
        tool result had no room or the context was full, counts as longer than the limit.
    """

    max_tokens: int | None = None
    """L_max: from this length on the penalty is whole. None is `max_response_tokens`."""
    buffer_tokens: int | None = None
    """L_cache: the last so many tokens before `max_tokens`, in which the penalty grows. None is a fifth of it."""
    factor: float = 1.0
    """The whole penalty; 0 for none."""
    mask_truncated: bool = False
    """Leave trajectories that were cut off out of the loss. Their rewards still count for the others' advantages."""

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        check_overlong_lengths(self.max_tokens, self.buffer_tokens)
        if not 0 <= self.factor < float("inf"):
            raise ConfigError(f"`factor` must be at least 0 and finite, but got {self.factor}. Use 0 for none.")

    def within(self, max_response_tokens: int) -> "OverlongPenalty":
        """Return the same with all lengths known.

        Args:
            max_response_tokens: Limit of the rollouts.

        Raises:
            ConfigError: If no trajectory can get as long as `max_tokens`, or the buffer is not shorter than that.
        """
        longest, buffer = overlong_lengths(self.max_tokens, self.buffer_tokens, max_response_tokens, "overlong")
        return replace(self, max_tokens=longest, buffer_tokens=buffer)

    def __call__(self, length: int, is_truncated: bool = False) -> float:
        """Return what is added to the reward, in [-`factor`, 0].

        Args:
            length: Tokens after the prompt.
            is_truncated: Whether the trajectory was cut off.
        """
        longest, buffer = self.max_tokens, self.buffer_tokens
        assert longest is not None, "`within` fills it in"
        assert buffer is not None, "`within` fills it in"
        return -self.factor * overlong_share(length, is_truncated, longest, buffer)

    def of(self, tree: RolloutTree, leaf: Leaf) -> float:
        """Return the penalty of a trajectory of a finished tree."""
        length = tree.segments[leaf.segment_id].end - tree.segments[0].end
        return self(length, leaf.stop_reason is StopReason.LENGTH)

    def is_masked(self, leaf: Leaf) -> bool:
        """Return whether a trajectory is left out of the loss."""
        return self.mask_truncated and leaf.stop_reason is StopReason.LENGTH
