"""Padded, flat and tree-packed updates on a GPU: losses, gradients and times of every attention back end."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aepo_lightning.advantages import GroupZScore
from aepo_lightning.contracts.batch import Minibatch, TrajectoryBatch
from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.objectives import ClippedSurrogate, KLPenalty
from aepo_lightning.ops.tree_attention import BackEnd
from aepo_lightning.policy.network import PolicyNetwork, TokenScores
from aepo_lightning.training.experience import ExperienceBuilder, ExperienceSettings
from aepo_lightning.training.loss import PolicyLoss
from benchmarks.support.gpu_case import CaseReport, Setting
from benchmarks.support.gpu_models import architecture, build_model, relative_distance, seconds, significant
from benchmarks.support.shared_prefixes import make_trees

SHARE = 0.5
MOST_TOKENS = 16384
MOST_FLOAT32_DISTANCE = 3e-3
"""Tensor cores may round float32 products to ten bits."""
MOST_OF_PADDED_DISTANCE = 1.5
"""Distance of bfloat16 gradients from those in float32, over that of padded rows."""

Variant = tuple[str, BackEnd | None]
REFERENCE: Variant = ("padded", None)
ON_GPU: Sequence[Variant] = (REFERENCE, ("flat", None), ("tree", None), ("flat", "flex"), ("tree", "dense"))
ON_CPU: Sequence[Variant] = (REFERENCE, ("flat", None), ("tree", None), ("tree", "dense"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Forward and backward pass of one optimiser step in one packing."""

    network: PolicyNetwork
    minibatch: Minibatch
    loss_of: PolicyLoss = field(
        default_factory=lambda: PolicyLoss(objective=ClippedSurrogate(), kl_penalty=KLPenalty(coefficient=0.1))
    )

    def __call__(self) -> float:
        """Run it and return the loss; gradients replace those of the step before."""
        self.network.zero_grad()
        total = torch.zeros(())
        for batch in self.minibatch.micro_batches:
            loss, _ = self.loss_of(self.network, batch, self.minibatch)
            loss.backward()
            total = total.to(loss.device) + loss.detach()
        return float(total)

    @property
    def gradients(self) -> list[Tensor]:
        """Return every gradient of the last step."""
        return [p.grad.clone() for p in self.network.parameters() if p.grad is not None]

    @property
    def num_tokens(self) -> int:
        """Return how many tokens the layers run."""
        return sum(
            batch.input_ids.numel() if batch.packed is None else len(batch.packed.input_ids)
            for batch in self.minibatch.micro_batches
        )


def make_minibatch(trees: Sequence[RolloutTree], packing: str, vocabulary: int, device: str) -> Minibatch:
    """Return one optimiser step on trees; the reference model is one that knows nothing."""
    builder = ExperienceBuilder(
        advantage_estimator=GroupZScore(),
        settings=ExperienceSettings(
            questions_per_step=len(trees),
            max_tokens_per_micro_batch=MOST_TOKENS,
            packing=packing,  # type: ignore[arg-type]
            old_logprobs="auto",
        ),
    )
    (minibatch,) = builder.build(trees, _refuse_to_score)
    for batch in minibatch.micro_batches:
        batch.ref_logprobs = torch.full_like(batch.sampler_logprobs, -float(torch.tensor(vocabulary).log()))
    return minibatch.to(device)


def _refuse_to_score(batch: TrajectoryBatch) -> TokenScores:
    raise AssertionError(f"one on-policy step needs no scores, but {len(batch.lengths)} rows were to be scored")


def compare_packings(
    setting: Setting, report: CaseReport, dtype: torch.dtype, num_questions: int, num_layers: int
) -> None:
    """Compare losses and gradients with those of padded rows in float32, and times with each other."""
    num_questions = 1 if setting.is_dry else num_questions
    fields = architecture("0.6B", is_dry=setting.is_dry, num_hidden_layers=num_layers)
    trees = [tree for seed in range(num_questions) for tree in make_trees(SHARE, seed)]
    if setting.is_dry:
        del trees[0].leaves[3:]
    batches = {
        packing: make_minibatch(trees, packing, fields["vocab_size"], setting.device)
        for packing in ("padded", "flat", "tree")
    }
    truth = Update(
        network=_network(build_model(fields, dtype, setting.device).float(), None), minibatch=batches["padded"]
    )
    exact_loss, exact = truth(), truth.gradients
    del truth
    model = build_model(fields, dtype, setting.device)
    found: dict[Variant, dict[str, Any]] = {}
    for variant in ON_GPU if setting.device == "cuda" else ON_CPU:
        packing, back_end = variant
        update = Update(network=_network(model, back_end), minibatch=batches[packing])
        loss = update()
        found[variant] = {
            "loss_difference": significant(abs(loss - exact_loss)),
            "gradient_distance": significant(relative_distance(update.gradients, exact)),
            "tokens": update.num_tokens,
        }
        report.add({_title(variant): found[variant]}, _goal(variant, found, dtype))
        repeats = 1 if setting.is_dry or back_end == "dense" else 3
        found[variant]["seconds"] = significant(seconds(update, setting.device, repeats))
        report.add({_title(variant): found[variant]})
    report.add(_speed_up(found))


def _network(model: PreTrainedModel, back_end: BackEnd | None) -> PolicyNetwork:
    return PolicyNetwork(model, chunk_size=2048, gradient_checkpointing=True, packed_attention=back_end).train()


def _title(variant: Variant) -> str:
    packing, back_end = variant
    return packing if back_end is None else f"{packing}, {back_end}"


def _goal(variant: Variant, found: dict[Variant, dict[str, Any]], dtype: torch.dtype) -> dict[str, Any]:
    distance = found[variant]["gradient_distance"]
    if dtype == torch.float32:
        return {f"{_title(variant)} gradients": (distance, "<=", MOST_FLOAT32_DISTANCE)}
    own = found[REFERENCE]["gradient_distance"]
    return {f"{_title(variant)} gradients": (significant(distance / own), "<=", MOST_OF_PADDED_DISTANCE)}


def _speed_up(found: dict[Variant, dict[str, Any]]) -> dict[str, float]:
    """Return how much faster the tree is, and would be if only tokens counted."""
    flat, tree = found["flat", None], found["tree", None]
    return {
        "tree_faster_than_flat": significant(flat["seconds"] / tree["seconds"]),
        "tree_faster_than_padded": significant(found[REFERENCE]["seconds"] / tree["seconds"]),
        "ideal": significant(flat["tokens"] / tree["tokens"]),
    }
