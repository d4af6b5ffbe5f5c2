"""Log-probs and entropies of the network against transformers' own logits in float64, in every packing."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aepo_lightning.ops.tree_packing import pack_rows
from aepo_lightning.policy.network import PolicyNetwork, TokenScores
from benchmarks.support.gpu_case import CaseReport, Setting
from benchmarks.support.gpu_models import architecture, build_model, significant

TEMPERATURE = 0.7
SHARPNESS = 4.0
"""Gives entropies between nothing and the logarithm of the vocabulary."""
PACKINGS = ("padded", "flat", "tree")
MOST_FLOAT32_ERROR = 1e-3
MOST_OF_OWN_ERROR = 1.25
"""Mean error of our bfloat16 log-probs over that of transformers' own."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Rows of equal length that share their first half."""

    input_ids: Tensor
    mask: Tensor

    @classmethod
    def draw(cls, num_rows: int, length: int, vocabulary: int) -> "Rows":
        """Return random rows."""
        ids = torch.randint(vocabulary, (num_rows, length), generator=torch.Generator().manual_seed(0))
        ids[:, : length // 2] = ids[0, : length // 2]
        mask = torch.ones(num_rows, length - 1, dtype=torch.bool)
        mask[:, : length // 4] = False
        return cls(input_ids=ids, mask=mask)


def compare_scores(setting: Setting, report: CaseReport, dtype: torch.dtype) -> None:
    """Compare in one precision."""
    fields = architecture("0.6B", is_dry=setting.is_dry)
    model = build_model(fields, dtype, setting.device, SHARPNESS)
    rows = Rows.draw(2, 64 if setting.is_dry else 1024, fields["vocab_size"])
    truth = _own_scores(deepcopy(model).double(), rows, setting.device)
    own = _errors(_own_scores(model, rows, setting.device), truth, rows)
    report.add({"entropy_range": _range(truth, rows), "transformers": own})
    network = PolicyNetwork(model, chunk_size=2048)
    for packing in PACKINGS:
        found = _errors(_our_scores(network, rows, packing, setting.device), truth, rows)
        if dtype == torch.float32:
            goal = (max(found["logprob_max"], found["entropy_max"]), "<=", MOST_FLOAT32_ERROR)
        else:
            goal = (significant(found["logprob_mean"] / own["logprob_mean"]), "<=", MOST_OF_OWN_ERROR)
        report.add({packing: found}, {f"{packing} log-probs": goal})


@torch.no_grad()
def _our_scores(network: PolicyNetwork, rows: Rows, packing: str, device: str) -> tuple[Tensor, Tensor]:
    packed = None
    if packing != "padded":
        lengths = torch.full((len(rows.input_ids),), rows.input_ids.shape[1])
        packed = pack_rows(rows.input_ids, lengths, rows.mask, shares_prefixes=packing == "tree").to(device)
    scores: TokenScores = network(rows.input_ids.to(device), rows.mask.to(device), TEMPERATURE, packed=packed)
    return scores.logprobs.double().cpu(), scores.entropies.double().cpu()


@torch.no_grad()
def _own_scores(model: PreTrainedModel, rows: Rows, device: str) -> tuple[Tensor, Tensor]:
    """Return what the whole model's own logits give, row by row."""
    found = []
    for row in rows.input_ids.to(device):
        logits = model(input_ids=row[None], use_cache=False).logits[0, :-1]
        log_p = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / TEMPERATURE).log_softmax(-1)
        logprobs = log_p.gather(-1, row[1:, None])[:, 0]
        found.append((logprobs.double().cpu(), -(log_p.exp() * log_p).sum(-1).double().cpu()))
    return torch.stack([each for each, _ in found]), torch.stack([each for _, each in found])


def _errors(found: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor], rows: Rows) -> dict[str, float]:
    """Return mean and largest distance over the tokens that count."""
    errors: dict[str, float] = {}
    for name, one, other in zip(("logprob", "entropy"), found, truth, strict=True):
        distance = (one - other).abs()[rows.mask]
        errors |= {
            f"{name}_mean": significant(float(distance.mean())),
            f"{name}_max": significant(float(distance.max())),
        }
    return errors


def _range(truth: tuple[Tensor, Tensor], rows: Rows) -> list[Any]:
    entropies = truth[1][rows.mask]
    return [significant(float(entropies.min())), significant(float(entropies.max()))]
