"""The supervised cold start: next-token prediction on demonstrations, tool results masked (the paper's stage 0)."""

from contextlib import AbstractContextManager, nullcontext

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.ops.logit_blocks import ChunkSize
from aepo_lightning.policy.network import PolicyNetwork, TokenScores
from aepo_lightning.policy.tiled_mlp import tile_gated_mlps
from aepo_lightning.training.demonstrations import DemonstrationBatch, DemonstrationStep
from aepo_lightning.training.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    build_optimizer,
    build_scheduler,
    check_factories,
)


class ColdStartModule(LightningModule):
    """Trains a policy on demonstrations, from its first weights: random ones, or those of a pretrained model."""

    def __init__(
        self,
        policy: PolicySource,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        max_grad_norm: float = 1.0,
        *,
        logprob_chunk_size: ChunkSize = 256,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Build the network.

        Args:
            policy: Architecture, tokenizer and first weights.
            optimizer: Called with the parameters.
            scheduler: Called with the optimizer; stepped once per optimiser step.
            max_grad_norm: Gradients are scaled down to this L2 norm.
            logprob_chunk_size: Rows of logits that exist at once, or `auto`: as many as 256 MiB hold.
            gradient_checkpointing: Recompute activations in the backward pass.

        Raises:
            ConfigError: If optimizer or scheduler are of a kind that cannot be stepped here.
        """
        super().__init__()
        check_factories(optimizer, scheduler)
        self.automatic_optimization = False
        self.policy = policy
        self.network = PolicyNetwork(policy.build_model(), logprob_chunk_size, gradient_checkpointing)
        self._mlps = tile_gated_mlps(self.network.model)
        self.network.train()  # `from_pretrained` returns a model in evaluation mode, in which nothing is recomputed
        self._optimizer_factory = optimizer
        self._scheduler_factory = scheduler
        self._max_grad_norm = max_grad_norm

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Create optimizer and scheduler from their factories.

        Raises:
            ConfigError: If one of them cannot be stepped here.
        """
        optimizer = build_optimizer(self._optimizer_factory, self.network.parameters())
        if self._scheduler_factory is None:
            return optimizer
        scheduler = build_scheduler(self._scheduler_factory, optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}

    def training_step(self, step: DemonstrationStep, batch_idx: int) -> None:
        """Take one optimiser step on the mean cross-entropy of the demonstrator's tokens."""
        del batch_idx
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        losses, entropies = [], []
        for batch in step.micro_batches:
            with self._last_layer_of(batch):  # also while the backward pass computes it again
                scores: TokenScores = self.network(batch.input_ids, batch.response_mask, packed=batch.packed)
                loss = -scores.logprobs.sum() / step.num_tokens
                self.manual_backward(loss)
            losses.append(loss.detach())
            entropies.append(scores.entropies.sum() / step.num_tokens)
        nn.utils.clip_grad_norm_(self.network.parameters(), self._max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, LRScheduler):
            scheduler.step()
        self.log("coldstart/loss", torch.stack(losses).sum(), prog_bar=True)
        self.log("coldstart/entropy", torch.stack(entropies).sum())

    def _last_layer_of(self, batch: DemonstrationBatch) -> AbstractContextManager[None]:
        """Return the context in which the last layer computes what is scored of padded rows."""
        if batch.packed is not None:
            return nullcontext()
        is_scored = nn.functional.pad(batch.response_mask, (0, 1))  # nothing follows the last token
        return self._mlps.last_layer_at(is_scored)
