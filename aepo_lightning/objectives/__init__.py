"""Surrogate losses, token by token, and how tokens add up to the loss of an optimiser step.

clipped_surrogate.py  GRPO, DAPO, GPPO, CE-GPPO, EBPO and GSPO: one loss with two gradient-preserving coefficients
cispo.py              CISPO: a clipped, detached importance weight
kl.py                 KL estimators and the penalty built from them
importance_correction.py  truncated or masked importance sampling between sampler and trainer
aggregation.py        token losses to a scalar, independent of the split into micro-batches
ratio_metrics.py      what every objective logs about the importance ratio
clip_metrics.py       what an objective with bounds logs about the tokens beyond them
"""

from aepo_lightning.objectives.aggregation import LossAggregation
from aepo_lightning.objectives.cispo import Cispo
from aepo_lightning.objectives.clipped_surrogate import ClippedSurrogate
from aepo_lightning.objectives.importance_correction import CorrectionOutput, ImportanceCorrection
from aepo_lightning.objectives.kl import KLEstimator, KLPenalty, kl_estimate

__all__ = [
    "Cispo",
    "ClippedSurrogate",
    "CorrectionOutput",
    "ImportanceCorrection",
    "KLEstimator",
    "KLPenalty",
    "LossAggregation",
    "kl_estimate",
]
