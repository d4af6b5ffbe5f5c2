"""A training that ends by what its rollouts have cost, rather than by the number of its iterations."""

from typing import Any

import lightning as L
from typing_extensions import override

from aepo_lightning.callbacks.trainer_parts import rollouts_of
from aepo_lightning.errors import ConfigError


class SampleBudget(L.Callback):
    """Ends training after the first iteration by which both budgets are used up, or earlier at `max_epochs`.

    What costs is what the training rollouts of all ranks sampled, each token and each answered call once however many
    trajectories share it; validation is free. Algorithms that spend differently on an iteration are compared at equal
    budgets with it. The amounts are in the checkpoint, so a resumed run goes on with them. No number is logged.
    """

    def __init__(self, num_generated_tokens: int, num_answered_calls: int = 0) -> None:
        """Keep the budgets.

        Args:
            num_generated_tokens: Tokens sampled by the policy.
            num_answered_calls: Tool calls that were answered. 0 leaves the tokens to decide.

        Raises:
            ConfigError: If one of them is negative.
        """
        super().__init__()
        self.budgets = {"num_generated_tokens": num_generated_tokens, "num_answered_calls": num_answered_calls}
        for name, budget in self.budgets.items():
            if budget < 0:
                raise ConfigError(f"`{name}` must be at least 0, but got {budget}. Use 0 for no budget.")
        self.spent = dict.fromkeys(self.budgets, 0.0)

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that there are rollouts to count.

        Raises:
            ConfigError: If the trainer's data is of another kind.
        """
        if stage == "fit":
            rollouts_of(trainer, "metrics")

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the iteration. The numbers are sums over all ranks, so all ranks agree."""
        metrics = rollouts_of(trainer, "metrics").metrics
        self.spent = {name: spent + metrics.get(f"rollout/{name}", 0.0) for name, spent in self.spent.items()}
        if all(self.spent[name] >= budget for name, budget in self.budgets.items()):
            trainer.should_stop = True

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return what is spent."""
        return {"spent": dict(self.spent)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.spent = {name: float(state_dict["spent"][name]) for name in self.budgets}
