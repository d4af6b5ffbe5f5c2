"""The objective alone on tensors: what PPO-clip and EBPO, AEPO's update, leave of the gradient of five tokens.

    python examples/objective_alone.py

An objective takes log-probs, advantages and a mask, and returns a loss per token; it needs no model and no trainer.
"""

import math

import torch

from aepo_lightning import ClippedSurrogate, EntropyShaping, GroupZScore
from aepo_lightning.advantages.entropy_statistics import EntropyStatistics
from aepo_lightning.contracts.objective import ObjectiveInput


def rounded(values: torch.Tensor) -> list[list[float]]:
    return [[round(value, 2) for value in row] for row in values.tolist()]


# Two trajectories of one question: the first is right, the second is wrong.
advantages = GroupZScore()(torch.tensor([1.0, 0.0]))
print("advantages of the group:", rounded(advantages[None])[0])

ratios = torch.tensor([[0.7, 1.0, 1.5], [0.7, 1.5, 1.0]])  # how far the policy has moved from the one that sampled
mask = torch.tensor([[True, True, True], [True, True, False]])  # the last token is a tool's: never trained
old_logprobs = torch.full((2, 3), math.log(0.3))


def kept(objective: ClippedSurrogate) -> torch.Tensor:
    """Return the factor F of `grad log pi * A` for every token."""
    logprobs = (old_logprobs + ratios.log()).requires_grad_()
    inputs = ObjectiveInput(
        logprobs=logprobs,
        old_logprobs=old_logprobs,
        advantages=advantages[:, None].expand(2, 3).contiguous(),
        response_mask=mask,
    )
    objective(inputs).token_losses.sum().backward()
    return -logprobs.grad / advantages[:, None]


print("ratios   ", rounded(ratios))
for name, objective in (("PPO-clip", ClippedSurrogate()), ("EBPO    ", ClippedSurrogate(preserve_high=1.0))):
    print(name, "keeps", rounded(kept(objective)))

# Uncertain tokens count more: the advantage of a token times 1 + weight * z(entropy), over the tokens of the group.
entropies = torch.tensor([[0.1, 2.0, 0.4], [0.3, 1.2, 0.0]])
shaped = EntropyShaping(weight=0.2).shape(
    advantages[:, None].expand(2, 3), entropies, mask, EntropyStatistics.from_tokens(entropies, mask)
)
print("entropies", rounded(entropies))
print("advantages of tokens", rounded(shaped))
