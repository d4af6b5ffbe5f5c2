"""What the datamodule asks of the module that it rolls out for."""

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from aepo_lightning.contracts.batch import TrajectoryBatch
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.errors import ConfigError
from aepo_lightning.objectives import ImportanceCorrection
from aepo_lightning.policy.network import PolicyNetwork, TokenScores


@runtime_checkable
class TrainedPolicy(Protocol):
    """A policy in training: its weights, and what they say about given tokens. `AEPOModule` is one."""

    policy: PolicySource
    """Where tokenizer and first weights come from."""

    # A method: a submodule is no attribute to whoever looks at class and instance only, as `isinstance` has done since
    # Python 3.12, and before that it would read a property.
    def trained_network(self) -> PolicyNetwork:
        """Return what is trained; there from `configure_model` on."""
        ...

    @property
    def importance_correction(self) -> ImportanceCorrection:
        """How token losses are corrected for the difference to the engine."""
        ...

    @property
    def uses_reference(self) -> bool:
        """Whether batches must bring log-probs of the reference policy."""
        ...

    def score(self, batch: TrajectoryBatch) -> TokenScores:
        """Return log-probs and entropies of a batch under the present weights, without gradient."""
        ...

    def score_reference(self, batch: TrajectoryBatch) -> TokenScores:
        """Return log-probs of a batch under the reference policy."""
        ...

    def evaluating(self) -> AbstractContextManager[None]:
        """Put the module into evaluation mode for a while."""
        ...


def as_trained_policy(module: Any) -> TrainedPolicy:
    """Return the module of a trainer.

    Raises:
        ConfigError: If it lacks what the datamodule asks for.
    """
    if not isinstance(module, TrainedPolicy):
        raise ConfigError(
            f"The module must be an `AEPOModule` or have what `TrainedPolicy` lists, but got {type(module).__name__}."
        )
    return module
