"""Which estimator, leaf weights, credit and normalisation have a meaning together."""

from typing import get_args

from aepo_lightning.advantages import FirstBranch, GroupZScore, NoBaseline, OverlongPenalty
from aepo_lightning.contracts.advantage import takes
from aepo_lightning.contracts.blame import part_name
from aepo_lightning.contracts.objective import AdvantageEstimator, Credit
from aepo_lightning.contracts.tree import LeafWeighting
from aepo_lightning.errors import ConfigError


def check_advantages(
    estimator: AdvantageEstimator,
    leaf_weights: LeafWeighting,
    credit: Credit | None,
    normalize_over: str,
    overlong: OverlongPenalty | None = None,
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
    _check_normalization(estimator, credit, normalize_over)
    if isinstance(credit, FirstBranch) and overlong is not None and overlong.mask_truncated:
        raise ConfigError(
            "`overlong.mask_truncated` must be false beside `FirstBranch`, but got true: a turn of a chain that was "
            "cut off would be trained by none of its trajectories. Use `NodeValue`."
        )
    if getattr(credit, "needs_rewards", False) and not isinstance(estimator, NoBaseline):
        raise ConfigError(
            f"`advantage_estimator` must be `NoBaseline` beside `{part_name(credit)}`, whose baseline is its own, "
            f"but got `{part_name(estimator)}`. Set advantage_estimator to aepo_lightning.advantages.NoBaseline."
        )


def _check_normalization(estimator: AdvantageEstimator, credit: Credit | None, normalize_over: str) -> None:
    if normalize_over == "group":
        return
    if isinstance(estimator, GroupZScore) and estimator.normalize_by_std:
        raise ConfigError(
            "`advantage_estimator.normalize_by_std` must be false with normalize_over='step', but got true: advantages "
            "would be scaled twice. Keep one of the two."
        )
    if isinstance(credit, FirstBranch):
        raise ConfigError(
            "`normalize_over` must be 'group' beside `FirstBranch`, but got 'step': whitening would give the turns "
            "that it leaves out an advantage. Use `NodeValue`."
        )
