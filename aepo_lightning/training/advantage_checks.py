"""Which estimator, leaf weights, credit and normalisation have a meaning together."""

from typing import get_args

from aepo_lightning.contracts.advantage import takes
from aepo_lightning.contracts.blame import part_name
from aepo_lightning.contracts.objective import AdvantageEstimator, Credit
from aepo_lightning.contracts.tree import LeafWeighting
from aepo_lightning.errors import ConfigError


def check_advantages(
    estimator: AdvantageEstimator, leaf_weights: LeafWeighting, credit: Credit | None, normalize_over: str
) -> None:
    """Check that what makes advantages fits together.

    Raises:
        ConfigError: If a word is unknown, or a combination has no meaning.
    """
    if leaf_weights not in get_args(LeafWeighting):
        raise ConfigError(f"`leaf_weights` must be one of {get_args(LeafWeighting)}, but got {leaf_weights!r}.")
    if normalize_over not in ("group", "step"):
        raise ConfigError(f"`normalize_over` must be 'group' or 'step', but got {normalize_over!r}.")
    if credit is not None and not callable(credit):
        raise ConfigError(f"`credit` must be None or callable, but got {credit!r:.80}. See `Credit`.")
    if leaf_weights != "uniform" and not takes(estimator, "weights"):
        raise ConfigError(
            f"`leaf_weights` must be 'uniform' for an estimator without a parameter `weights`, but got "
            f"{leaf_weights!r} beside `{part_name(estimator)}`. Give its `__call__` one, or weigh all leaves alike."
        )
