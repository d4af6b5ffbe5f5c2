"""From last hidden states to tokens, and the one transfer by which the host learns them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from aepo_lightning.engines.request import Request
from aepo_lightning.engines.sampling import SampledTokens
from aepo_lightning.ops.logit_map import LogitMap

_NARROW = (torch.bfloat16, torch.float16)


def head_logits(
    model: PreTrainedModel, logit_map: LogitMap, hidden: Float[Tensor, "batch hidden"]
) -> Float[Tensor, "batch vocab"]:
    """Return the logits of last hidden states; of 16-bit ones on CUDA in float32, as the trainer computes them."""
    head = model.lm_head
    if hidden.device.type == "cuda" and hidden.dtype in _NARROW:
        logits = torch.mm(hidden, head.weight.T, out_dtype=torch.float32)
        logits = logits if head.bias is None else logits.add_(head.bias)
    else:
        logits = head(hidden)
    return logits if logit_map.is_identity else logit_map.apply_(logits.float())


@dataclass(frozen=True, slots=True)
class StepKind:
    """What the requests of a step ask of sampling. A captured step holds it fixed."""

    restricts: bool = False
    """Whether one has a `top_p` or `top_k`."""
    has_greedy: bool = False
    num_top: int = 0
    """The largest number of log-probs that one wants with each token."""

    @classmethod
    def of(cls, requests: Sequence[Request]) -> "StepKind":
        """Return the kind of a step with these requests."""
        params = [request.params for request in requests]
        return cls(
            restricts=any(each.top_p < 1 or each.top_k > 0 for each in params),
            has_greedy=any(each.temperature == 0 for each in params),
            num_top=max(each.num_top_logprobs for each in params),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What was sampled in one step, on the host; one entry per request."""

    token_ids: list[int]
    logprobs: list[float]
    entropies: list[float]
    top_ids: list[list[int]]
    """Tokens of the largest log-probs; empty unless asked for."""
    top_logprobs: list[list[float]]


def pack(sampled: SampledTokens, num_top: int) -> Float[Tensor, "numbers batch"]:
    """Return everything that the host needs in one float64 tensor, which holds token ids exactly."""
    columns = [sampled.token_ids, sampled.logprobs, sampled.entropies]
    parts = [torch.stack([column.double() for column in columns])]
    if num_top:
        top = sampled.all_logprobs.topk(min(num_top, sampled.all_logprobs.shape[-1]))
        parts += [top.indices.T.double(), top.values.T.double()]
    return torch.cat(parts)


def unpack(packed: Float[Tensor, "numbers batch"], rows: Sequence[int]) -> Drawn:
    """Return what `pack` packed, of some rows. The host waits for the device here."""
    numbers = packed.tolist()
    token_ids, logprobs, entropies = ([line[row] for row in rows] for line in numbers[:3])
    num_top = (len(numbers) - 3) // 2
    ids, values = numbers[3 : 3 + num_top], numbers[3 + num_top :]
    return Drawn(
        token_ids=[int(token) for token in token_ids],
        logprobs=logprobs,
        entropies=entropies,
        top_ids=[[int(line[row]) for line in ids] for row in rows],
        top_logprobs=[[line[row] for line in values] for row in rows],
    )
