"""Tensor arithmetic that more than one family needs; no configuration, no tokenizer.

masked.py       sums, means and importance ratios over response tokens, safe against NaN outside the mask
logit_map.py    scale and soft cap of a model's logits
logprob.py      log-probs and entropies from hidden states, without ever holding all logits
logit_blocks.py blocks of logits: their size, their products, the softmax sums over them
entropy.py      entropy of one token from its largest log-probs
gated_mlp.py    a gated MLP, tile by tile
low_rank.py     a weight with its adapter merged into it
percentiles.py  percentiles of numbers that lie on several ranks
tree_packing.py, tree_partition.py, tree_attention.py
                trajectories as one row with every shared prefix once: its structure, what fits into it, its attention
"""

from aepo_lightning.ops.logprob import EntropyMode, LogprobOutput, chunked_logprob
from aepo_lightning.ops.masked import (
    MAX_LOG_RATIO,
    importance_ratio,
    masked_sum,
    weighted_mean,
    zero_outside,
)

__all__ = [
    "MAX_LOG_RATIO",
    "EntropyMode",
    "LogprobOutput",
    "chunked_logprob",
    "importance_ratio",
    "masked_sum",
    "weighted_mean",
    "zero_outside",
]
