"""Where a run computes, and in which precision: what `auto` means in `trainer.accelerator` and `trainer.precision`."""

import logging

import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

logger = logging.getLogger(__name__)

_SHARDED = ("ModelParallelStrategy", "FSDPStrategy")
_NARROW = {"bfloat16": "500th", "float16": "4000th"}
"""Types of weights that are too coarse for small steps, and the share of a weight that rounding takes."""


def runs_on_gpus(cfg: DictConfig) -> bool:
    """Whether the trainer of a configuration computes on GPUs of this machine."""
    accelerator = cfg.trainer.accelerator
    return accelerator != "cpu" and (accelerator != "auto" or torch.cuda.is_available())


def choose_precision(cfg: DictConfig) -> str:
    """Return the precision of a configuration's trainer.

    `auto` is `bf16-mixed` where pretrained float32 weights are trained whole on GPUs: weights, gradients and optimiser
    state stay in float32, matrix products are computed in bfloat16. Everywhere else it is `32-true`; a sharded policy
    has `module.mixed_precision`.
    """
    asked = str(cfg.trainer.get("precision", "32-true"))
    if asked != "auto":
        return asked
    is_sharded = str(cfg.strategy.get("_target_", "")).rpartition(".")[2] in _SHARDED
    is_wide = "name_or_path" in cfg.model and cfg.model.get("dtype", "float32") == "float32"
    return "bf16-mixed" if runs_on_gpus(cfg) and is_wide and not is_sharded else "32-true"


@rank_zero_only
def announce_precision(cfg: DictConfig) -> None:
    """Say in which precision a pretrained policy is trained on GPUs, where that was not written down.

    Weights that are themselves of 16 bits come with a warning: they round small updates away.
    """
    if str(cfg.trainer.precision) == "auto" and choose_precision(cfg) == "bf16-mixed":
        logger.info(
            "The policy is trained with float32 weights and optimiser state, and matrix products in bfloat16 "
            "(trainer.precision=bf16-mixed). trainer.precision=32-true computes everything in float32."
        )
    dtype = cfg.model.get("dtype", "float32")
    if dtype in _NARROW and OmegaConf.select(cfg, "module.adapter") is None:
        logger.warning(
            "The optimiser updates %s weights, in which a step of less than about a %s of a weight changes nothing. "
            "model.dtype=float32 keeps small steps; GPUs then multiply in bfloat16 all the same.",
            *(dtype, _NARROW[dtype]),
        )
