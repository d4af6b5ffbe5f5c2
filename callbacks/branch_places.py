"""Where branches are opened: after results that leave a choice, or after results that are merely followed by noise."""

import re
from collections.abc import Iterable

import lightning as L
from typing_extensions import override

from aepo_lightning.callbacks.trainer_parts import rollouts_of
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tree import BranchDecision, RolloutTree
from aepo_lightning.distributed.collectives import all_reduce
from aepo_lightning.errors import ConfigError


class BranchPlaces(L.Callback):
    """Logs how often chains branch after results of two kinds, which the user tells apart by their text.

    For tasks that know where the next step is uncertain and where words alone are. `rollout/branches_on_noise_fraction`
    is the share of branches that were opened after noise; `rollout/decisions_on_noise_fraction`, the share of branch
    decisions there, is what branching at random would give.
    """

    def __init__(self, choice: str, noise: str) -> None:
        """Compile the patterns.

        Args:
            choice: Regular expression found in the results after which the next step matters.
            noise: The same of results after which it does not. Looked for first; a result with neither counts nowhere.

        Raises:
            ConfigError: If a pattern is none.
        """
        super().__init__()
        self._choice, self._noise = _pattern("choice", choice), _pattern("noise", noise)

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that there are rollouts to watch.

        Raises:
            ConfigError: If the trainer's data is of another kind.
        """
        if stage == "fit":
            rollouts_of(trainer, "metrics", "trees")

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the branches of the iteration, over all ranks."""
        figures = self.count(rollouts_of(trainer, "trees").trees)
        pl_module.log_dict(
            {f"rollout/{name}": value for name, value in figures.items()}, sync_dist=True, rank_zero_only=True
        )

    def count(self, trees: Iterable[RolloutTree]) -> dict[str, float]:
        """Return the two shares over the trees of all ranks, as far as there is something to share. Collective."""
        found = [
            (bool(self._noise.search(result)), decision.num_opened)
            for tree in trees
            for decision, result in results_before(tree)
            if self._noise.search(result) or self._choice.search(result)
        ]
        decisions, branches, noisy, on_noise = all_reduce(
            [
                len(found),
                sum(num_opened for _, num_opened in found),
                sum(is_noise for is_noise, _ in found),
                sum(num_opened for is_noise, num_opened in found if is_noise),
            ]
        )
        shares = {
            "decisions_on_noise_fraction": (noisy, decisions),
            "branches_on_noise_fraction": (on_noise, branches),
        }
        return {name: part / whole for name, (part, whole) in shares.items() if whole}


def results_before(tree: RolloutTree) -> list[tuple[BranchDecision, str]]:
    """Return the branch decisions of a finished tree, each with the text of the tool result that it followed."""
    chains = {}
    for leaf in tree.leaves:
        path = tree.path(leaf.segment_id)
        results = [segment.tool_result for segment in path if segment.source is SegmentSource.TOOL]
        chains[leaf.seed_path] = [result.text for result in results if result is not None]
    return [
        (decision, chains[decision.seed_path][decision.turn - 1])
        for decision in tree.decisions
        if decision.turn <= len(chains.get(decision.seed_path, ()))
    ]


def _pattern(name: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"`{name}` must be a regular expression, but got {pattern!r}: {error}. Mend it.") from error
