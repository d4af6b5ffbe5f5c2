"""What callbacks and modules may ask of data that is rolled out between epochs."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from aepo_lightning.contracts.branching import BranchPolicy
from aepo_lightning.contracts.tree import RolloutTree


@runtime_checkable
class Rollouts(Protocol):
    """The rollouts of the present iteration. `RolloutDataModule` has them; so may any datamodule or module."""

    trees: list[RolloutTree]
    """Finished and scored, of this rank."""
    metrics: dict[str, float]
    """Figures about them over all ranks, under the names in which they are logged."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        ...


@runtime_checkable
class BranchingRollouts(Rollouts, Protocol):
    """Rollouts whose branch policy may be read, and replaced for the next iteration."""

    branch_policy: BranchPolicy


@runtime_checkable
class OverlappingRollouts(Rollouts, Protocol):
    """Rollouts that may be in flight while the state of a run is asked for."""

    def make_resumable(self) -> bool:
        """Stop what is in flight; return whether a state of now, between iterations, has what a continued run needs."""
        ...

    def wait_for_rollouts(self) -> None:
        """Wait for what is in flight, so that the state of a run can be asked for without waiting."""
        ...


@runtime_checkable
class RepublishingRollouts(Rollouts, Protocol):
    """Rollouts that can be told that the weights were replaced from outside."""

    def weights_were_replaced(self) -> None:
        """Have the next rollouts made with the present weights, whatever is in flight or was published at this step."""
        ...
