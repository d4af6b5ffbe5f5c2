"""Pictures of the rollouts, drawn beside the update."""

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from typing_extensions import override

from aepo_lightning.callbacks.drawing import (
    Picture,
    draw_entropies,
    draw_histograms,
    draw_tree,
    draw_turns,
    rasterise,
    shown,
    token_entropies,
    turn_entropies,
)
from aepo_lightning.callbacks.logger_media import Cell, log_histogram, log_picture, log_table
from aepo_lightning.callbacks.rollout_logger import reward_spread
from aepo_lightning.callbacks.trainer_parts import rollouts_of
from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.errors import ConfigError

_COLUMNS = ("question", "rewards", "m", "k - m", "branches", "mean entropy (nats)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Due:
    """What is given to the loggers at the end of an iteration."""

    pictures: "Future[dict[str, Picture]]"
    rows: list[list[Cell]]
    entropies: NDArray[np.float64]


class RolloutPictures(L.Callback):
    """Gives pictures of the rollouts to the loggers at some iterations, and at the last one.

    `pictures/tree_1` and following are the trees of the questions of rank zero whose rewards differ most (a line is as
    wide as its share of the group, coloured by reward, a circle is a branch point), `pictures/entropy_1` the entropy
    along the best and the worst trajectory of the first of them, `pictures/entropy_by_turn` that of turns over
    iterations, `pictures/histograms` entropies of tokens, rewards, lengths and calls. `pictures/questions` is a table
    of the same questions, and TensorBoard gets the entropies of tokens as a histogram of its own. Loggers that take
    numbers only get nothing.

    Pictures are drawn in a thread while the update runs; the end of the iteration waits for them. No number is logged.
    """

    def __init__(self, every_n_epochs: int = 10, num_trees: int = 2) -> None:
        """Keep the numbers.

        Args:
            every_n_epochs: Iterations from one set of pictures to the next, the first included.
            num_trees: Trees each time.

        Raises:
            ConfigError: If a number is not positive.
        """
        super().__init__()
        for name, value in (("every_n_epochs", every_n_epochs), ("num_trees", num_trees)):
            if value < 1:
                raise ConfigError(f"`{name}` must be at least 1, but got {value}. Drop the callback to draw nothing.")
        self._every_n_epochs, self._num_trees = every_n_epochs, num_trees
        self.turns: dict[int, list[float]] = {}
        self._due: _Due | None = None

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that there are rollouts to draw.

        Raises:
            ConfigError: If the trainer's data is of another kind.
        """
        if stage == "fit":
            rollouts_of(trainer, "trees")

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to draw the rollouts just made, if they are due."""
        if not trainer.is_global_zero:
            return
        epoch, trees = trainer.current_epoch, rollouts_of(trainer, "trees").trees
        self.turns[epoch] = turn_entropies(trees)
        if epoch % self._every_n_epochs and epoch + 1 != trainer.max_epochs:
            return
        chosen = sorted(trees, key=reward_spread, reverse=True)[: self._num_trees]
        drawings: dict[str, Callable[[], Figure]] = {
            f"tree_{number}": partial(draw_tree, tree) for number, tree in enumerate(chosen, 1)
        }
        drawings |= {
            "entropy_1": partial(draw_entropies, chosen[0]),
            "entropy_by_turn": partial(draw_turns, dict(self.turns)),
            "histograms": partial(draw_histograms, trees),
        }
        with_one_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pictures")
        pictures = with_one_thread.submit(_draw, drawings)
        with_one_thread.shutdown(wait=False)  # once it has drawn
        self._due = _Due(pictures=pictures, rows=[_row(tree) for tree in chosen], entropies=token_entropies(trees))

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give what is drawn to the loggers."""
        due, self._due = self._due, None
        if due is None:
            return
        for name, picture in due.pictures.result().items():
            log_picture(trainer, f"pictures/{name}", picture)
        log_table(trainer, "pictures/questions", _COLUMNS, due.rows)
        log_histogram(trainer, "pictures/token_entropies", due.entropies)

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Forget what was to be drawn."""
        self._due = None

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the entropies of turns so far."""
        return {"turns": {epoch: list(means) for epoch, means in self.turns.items()}}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with saved ones."""
        self.turns = {int(epoch): list(map(float, means)) for epoch, means in state_dict["turns"].items()}


def _draw(drawings: dict[str, Callable[[], Figure]]) -> dict[str, Picture]:
    return {name: rasterise(draw()) for name, draw in drawings.items()}


def _row(tree: RolloutTree) -> list[Cell]:
    entropies = token_entropies([tree])
    rewards = " ".join(f"{leaf.reward.reward:.2f}" if leaf.is_scored and leaf.reward else "-" for leaf in tree.leaves)
    mean = float(entropies.mean()) if len(entropies) else math.nan
    question = shown(tree.question.question_id).replace("|", "/")
    return [question, rewards, tree.global_budget, tree.branch_budget, len(tree.branch_depths), mean]
