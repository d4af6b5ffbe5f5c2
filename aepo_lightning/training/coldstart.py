"""The supervised cold start: next-token prediction on demonstrations, tool results masked (the paper's stage 0)."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.distributed.collectives import all_reduce
from aepo_lightning.errors import TrainingError
from aepo_lightning.ops.logit_blocks import ChunkSize
from aepo_lightning.policy.lora import LoRA
from aepo_lightning.policy.network import PolicyNetwork, TokenScores
from aepo_lightning.policy.sharding.builder import NetworkBuilder
from aepo_lightning.policy.sharding.fsdp2 import clip_gradients, gradient_sync, reshard
from aepo_lightning.policy.sharding.options import ShardingOptions
from aepo_lightning.policy.tiled_mlp import TiledMLPs, tile_gated_mlps
from aepo_lightning.training.demonstrations import DemonstrationBatch, DemonstrationStep
from aepo_lightning.training.network_state import (
    add_identity,
    all_finite,
    building,
    left_in_place,
    log_reduced,
    prepare_stage,
    take_identity,
)
from aepo_lightning.training.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    build_both,
    check_factories,
    step_scheduler,
)


class ColdStartModule(LightningModule):
    """Trains a policy on demonstrations, from its first weights: random ones, or those of a pretrained model."""

    def __init__(  # noqa: PLR0913 -- as AEPOModule, whose memory settings these are
        self,
        policy: PolicySource,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        max_grad_norm: float = 1.0,
        *,
        logprob_chunk_size: ChunkSize = 256,
        gradient_checkpointing: bool = False,
        adapter: LoRA | None = None,
        mixed_precision: bool = False,
        cpu_offload: bool = False,
        reshard_after_forward: bool = True,
        defer_gradient_sync: bool = False,
        fused_norms: bool = False,
    ) -> None:
        """Keep the parts; the network is built in `configure_model`, once the strategy is known.

        Args:
            policy: Architecture, tokenizer and first weights.
            optimizer: Called with the parameters.
            scheduler: Called with the optimizer; stepped once per optimiser step.
            max_grad_norm: Gradients are scaled down to this L2 norm.
            logprob_chunk_size: Rows of logits that exist at once, or `auto`: as many as 256 MiB hold.
            gradient_checkpointing: Recompute activations in the backward pass.
            adapter: Train this beside the weights instead of the weights.
            mixed_precision: Under FSDP, compute in bfloat16 with float32 weights and reductions.
            cpu_offload: Under FSDP, keep weights, gradients and optimiser state on the CPU.
            reshard_after_forward: Under FSDP, free each layer after its forward pass.
            defer_gradient_sync: Under FSDP, reduce gradients once per step instead of after every micro-batch.
            fused_norms: Compute RMS norms with one kernel each instead of eight.

        Raises:
            ConfigError: If optimizer or scheduler are of a kind that cannot be stepped here, or `logprob_chunk_size`
                has no meaning.
        """
        super().__init__()
        check_factories(optimizer, scheduler)
        self.automatic_optimization = False
        self.policy = policy
        self.network: PolicyNetwork | None = None
        self._builder = NetworkBuilder(
            policy=policy,
            gradient_checkpointing=gradient_checkpointing,
            logprob_chunk_size=logprob_chunk_size,
            fused_norms=fused_norms,
            sharding=ShardingOptions(
                mixed_precision=mixed_precision, cpu_offload=cpu_offload, reshard_after_forward=reshard_after_forward
            ),
            adapter=adapter,
        )
        self._mlps = TiledMLPs()
        self._optimizer_factory = optimizer
        self._scheduler_factory = scheduler
        self._max_grad_norm = max_grad_norm
        self._defer_gradient_sync = defer_gradient_sync
        self._val_sums: list[tuple[float, int]] = []

    def setup(self, stage: str) -> None:
        """Have checkpoints checked before they are loaded."""
        del stage
        prepare_stage(self.trainer)

    def configure_model(self) -> None:
        """Build the network, sharded per decoder layer if the strategy shards. Later calls do nothing.

        Raises:
            ConfigError: If the precision or the strategy cannot train it.
            DataError: If weights cannot be read.
        """
        if self.network is not None:
            return
        with building(self, self._builder.sharding, self._defer_gradient_sync) as place:
            self.network = self._builder.trained(place)
            if place is None:
                self._mlps = tile_gated_mlps(self.network.model)

    def trained_network(self) -> PolicyNetwork:
        """Return what is trained; there from `configure_model` on."""
        assert self.network is not None, "`configure_model` runs before the network is asked for"
        return self.network

    def to(self, *args: Any, **kwargs: Any) -> "ColdStartModule":
        """Move, but leave offloaded weights on the CPU."""
        with left_in_place(self, self._builder.sharding):
            return super().to(*args, **kwargs)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Create optimizer and scheduler from their factories.

        Raises:
            ConfigError: If one of them cannot be stepped here.
        """
        return build_both(self._optimizer_factory, self._scheduler_factory, self.trained_network()).for_lightning()

    def training_step(self, step: DemonstrationStep, batch_idx: int) -> None:
        """Take one optimiser step on the mean cross-entropy of the demonstrator's tokens, over all ranks."""
        del batch_idx
        optimizer, network = self.optimizers(), self.trained_network()
        assert isinstance(optimizer, LightningOptimizer)
        losses, entropies = [], []
        for index, batch in enumerate(step.micro_batches):
            is_last = index + 1 == len(step.micro_batches)
            # The last layer's positions count also while the backward pass computes it again.
            with self._last_layer_of(batch), gradient_sync(network, is_last or not self._defer_gradient_sync):
                scores: TokenScores = network(batch.input_ids, batch.response_mask, packed=batch.packed)
                loss = -scores.logprobs.sum() / step.num_tokens
                # FSDP and DDP average gradients over ranks, the loss is already divided by the global count.
                self.manual_backward(loss * self.trainer.world_size)
            losses.append(loss.detach())
            entropies.append(scores.entropies.sum() / step.num_tokens)
        grad_norm = clip_gradients(network, self._max_grad_norm)
        total, entropy = _reduced(torch.stack(losses).sum(), torch.stack(entropies).sum())
        norm = float(grad_norm)
        self._refuse_non_finite(total, norm)
        optimizer.step()
        optimizer.zero_grad()
        step_scheduler(self)
        log_reduced(self, {"coldstart/loss": total}, prog_bar=True)
        log_reduced(self, {"coldstart/entropy": entropy, "coldstart/grad_norm": norm})

    def _refuse_non_finite(self, loss: float, grad_norm: float) -> None:
        if not all_finite(loss, grad_norm):
            raise TrainingError(
                f"Loss {loss} and gradient norm {grad_norm} must be finite (cold start, step {self.global_step}). "
                "The weights are unchanged. Lower the learning rate, or lengthen the warm-up."
            )

    def on_validation_epoch_start(self) -> None:
        """Forget the sums of the last validation."""
        self._val_sums = []

    def validation_step(self, step: DemonstrationStep, batch_idx: int) -> None:
        """Add up the cross-entropy of held-out demonstrations."""
        del batch_idx
        network = self.trained_network()
        total = 0.0
        for batch in step.micro_batches:
            with self._last_layer_of(batch):
                scores: TokenScores = network(batch.input_ids, batch.response_mask, entropy="none", packed=batch.packed)
            total -= float(scores.logprobs.sum())
        reshard(network)
        self._val_sums.append((total, step.num_tokens))

    def on_validation_epoch_end(self) -> None:
        """Log the mean cross-entropy of the held-out tokens, over all ranks."""
        if self._val_sums:
            [total] = all_reduce([sum(total for total, _ in self._val_sums)])
            log_reduced(self, {"coldstart/val_loss": total / sum(number for _, number in self._val_sums)})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the checkpoint belongs to, and the random generators of every rank. Collective."""
        add_identity(checkpoint, self.trained_network(), self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what belongs to another model, and go on with the saved random generators.

        Raises:
            DataError: If the checkpoint has another format, or parameters of other shapes.
        """
        take_identity(checkpoint, self.trained_network(), self.trainer)

    def _last_layer_of(self, batch: DemonstrationBatch) -> AbstractContextManager[None]:
        """Return the context in which the last layer computes what is scored of padded rows."""
        if batch.packed is not None or not self._mlps.num_found:
            return nullcontext()
        is_scored = nn.functional.pad(batch.response_mask, (0, 1))  # nothing follows the last token
        return self._mlps.last_layer_at(is_scored)


def _reduced(*sums: Tensor) -> list[float]:
    """Return sums over all ranks."""
    return all_reduce([float(each) for each in sums])
