"""The EBPO training step as a LightningModule.

One epoch is one rollout iteration and one `training_step` is one optimiser step over its micro-batches, so batch index,
`global_step` and logger step agree. Everything that makes the algorithm (objective, aggregation, KL penalty) is a part
that is passed in.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from aepo_lightning.contracts.batch import Minibatch, TrajectoryBatch
from aepo_lightning.contracts.objective import WeightedMean
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.contracts.rollouts import Rollouts
from aepo_lightning.contracts.tree import TreeBatch
from aepo_lightning.distributed.collectives import all_reduce
from aepo_lightning.errors import ConfigError, TrainingError
from aepo_lightning.objectives import ImportanceCorrection
from aepo_lightning.ops.logit_blocks import AUTO, ChunkSize
from aepo_lightning.policy.lora import LoRA, without_adapter
from aepo_lightning.policy.network import PolicyNetwork, TokenScores
from aepo_lightning.policy.sharding.builder import NetworkBuilder
from aepo_lightning.policy.sharding.fsdp2 import clip_gradients, forward_context, gradient_sync, is_sharded, reshard
from aepo_lightning.policy.sharding.options import ShardingOptions
from aepo_lightning.training.algorithm import Algorithm
from aepo_lightning.training.lightning_settings import check_trainer
from aepo_lightning.training.loss import PolicyLoss
from aepo_lightning.training.metrics import describe_evaluation, prefixed, ratio_percentiles
from aepo_lightning.training.network_state import (
    add_identity,
    all_finite,
    building,
    forget_logged,
    left_in_place,
    log_reduced,
    prepare_stage,
    take_identity,
)
from aepo_lightning.training.optimizer_settings import ResumedSettings
from aepo_lightning.training.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    build_both,
    check_factories,
    choose_optimizer,
    step_scheduler,
)

logger = logging.getLogger(__name__)


class AEPOModule(LightningModule):
    """A policy and the surrogate loss that improves it."""

    def __init__(  # noqa: PLR0913 -- every argument is one leaf of the configuration
        self,
        policy: PolicySource,
        algorithm: Algorithm,
        *,
        lr: float | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        importance_correction: ImportanceCorrection | None = None,
        max_grad_norm: float = 1.0,
        entropy_coefficient: float = 0.0,
        gradient_checkpointing: bool = False,
        logprob_chunk_size: ChunkSize = AUTO,
        mixed_precision: bool = False,
        cpu_offload: bool = False,
        reshard_after_forward: bool = True,
        adapter: LoRA | None = None,
        defer_gradient_sync: bool = False,
        fused_norms: bool = False,
    ) -> None:
        """Keep the parts; the model is built in `configure_model`, once the strategy is known.

        Args:
            policy: Architecture, tokenizer and first weights.
            algorithm: Its objective, aggregation and KL penalty make the loss. A frozen copy of the policy is kept only
                if the penalty is on.
            lr: Learning rate of AdamW without weight decay, 1e-6 unless given. Not beside `optimizer`.
            optimizer: Called with the parameters, in place of AdamW.
            scheduler: Called with the optimizer; stepped once per optimiser step. None keeps the rate constant.
            importance_correction: Weights of token losses against the engine's log-probs. Default: none.
            max_grad_norm: Gradients are scaled down to this L2 norm.
            entropy_coefficient: Weight of an entropy bonus in the loss.
            gradient_checkpointing: Recompute activations in the backward pass.
            logprob_chunk_size: Rows of logits that exist at once, or `auto`: as many as 256 MiB hold.
            mixed_precision: Under FSDP, compute in bfloat16 with float32 weights and reductions.
            cpu_offload: Under FSDP, keep weights, gradients and optimiser state on the CPU.
            reshard_after_forward: Under FSDP, free each layer after its forward pass. Without it a step gathers less
                and keeps more.
            adapter: Train this beside the weights instead of the weights. The KL penalty is then against the network
                without it, and no frozen copy is kept.
            defer_gradient_sync: Under FSDP, reduce gradients once per step instead of after every micro-batch. Saves
                traffic, but keeps whole float32 gradients on every GPU.
            fused_norms: Compute RMS norms with one kernel each instead of eight.

        Raises:
            ConfigError: If `max_grad_norm`, `logprob_chunk_size` or `lr` is not positive, `lr` stands beside
                `optimizer`, or optimizer or scheduler are of a kind that cannot be stepped here.
        """
        super().__init__()
        if not max_grad_norm > 0:
            raise ConfigError(f"`max_grad_norm` must be positive, but got {max_grad_norm}.")
        self.automatic_optimization = False
        self.policy = policy
        self.algorithm = algorithm
        self.policy_loss = PolicyLoss(
            objective=algorithm.objective,
            aggregation=algorithm.aggregation,
            kl_penalty=algorithm.kl_penalty,
            entropy_coefficient=entropy_coefficient,
            correction=importance_correction or ImportanceCorrection(),
        )
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
        self._optimizer_factory = choose_optimizer(lr, optimizer)
        self._scheduler_factory = scheduler
        check_factories(self._optimizer_factory, scheduler)
        self._max_grad_norm = max_grad_norm
        self._defer_gradient_sync = defer_gradient_sync
        self._settings = ResumedSettings()
        self._val_batches: list[TreeBatch] = []
        self.network: PolicyNetwork | None = None
        self._reference: list[PolicyNetwork] = []

    @property
    def entropy_coefficient(self) -> float:
        """Weight of the entropy bonus, which may be set between optimiser steps, alike on all ranks."""
        return self.policy_loss.entropy_coefficient

    @entropy_coefficient.setter
    def entropy_coefficient(self, value: float) -> None:
        self.policy_loss = replace(self.policy_loss, entropy_coefficient=value)

    @property
    def uses_reference(self) -> bool:
        """Whether the KL penalty needs log-probs of the reference policy."""
        return self.policy_loss.kl_penalty.coefficient > 0

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type in which the update multiplies matrices."""
        is_mixed = self._builder.sharding.mixed_precision or "bf16" in str(self.trainer.precision)
        return torch.bfloat16 if is_mixed else next(self.trained_network().parameters()).dtype

    @property
    def adapter(self) -> LoRA | None:
        """What is trained beside the weights; None if the weights are."""
        return self._builder.adapter

    @property
    def importance_correction(self) -> ImportanceCorrection:
        """How token losses are corrected for the difference to the engine."""
        return self.policy_loss.correction

    def configure_callbacks(self) -> list[Callback]:
        """Add none. This is the first that Lightning calls, so options that do not fit are refused here.

        Raises:
            ConfigError: If the trainer has an option for training of another kind.
        """
        check_trainer(self.trainer)
        return []

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
            if self.uses_reference and self._builder.adapter is None:
                # In a list, so that the frozen copy is neither a submodule nor in checkpoints.
                self._reference = [self._builder.reference(place)]

    def trained_network(self) -> PolicyNetwork:
        """Return what is trained; there from `configure_model` on."""
        assert self.network is not None, "`configure_model` runs before the network is asked for"
        return self.network

    def to(self, *args: Any, **kwargs: Any) -> "AEPOModule":
        """Move, but leave offloaded weights on the CPU: FSDP brings them to the device when they are needed."""
        with left_in_place(self, self._builder.sharding):
            return super().to(*args, **kwargs)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Create optimizer and scheduler from their factories.

        Raises:
            ConfigError: If one of them cannot be stepped here.
        """
        built = build_both(self._optimizer_factory, self._scheduler_factory, self.trained_network())
        self._settings.made(*built)
        return built.for_lightning()

    def on_train_start(self) -> None:
        """Apply what was set otherwise than in the checkpoint that the optimizer was restored from."""
        configs = self.trainer.lr_scheduler_configs
        lines = self._settings.apply(self.trainer.optimizers[0], configs[0].scheduler if configs else None)
        if lines and self.trainer.is_global_zero:
            logger.info("Set otherwise than in the checkpoint, and applied: %s.", ", ".join(lines))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the module into evaluation mode for a while."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    @torch.no_grad()
    def score(self, batch: TrajectoryBatch) -> TokenScores:
        """Return log-probs and entropies of a batch under the present weights, without gradient."""
        return self._score(self.trained_network(), batch)

    @torch.no_grad()
    def score_reference(self, batch: TrajectoryBatch) -> TokenScores:
        """Return log-probs of a batch under the reference policy."""
        if self._builder.adapter is not None:
            network = self.trained_network()
            with without_adapter(network.model):
                return self._score(network, batch)
        reference = self._reference[0]
        if not is_sharded(reference):
            # Lightning moves submodules only, and does so after `configure_model`.
            reference.to(self.device)
        return self._score(reference, batch)

    def _score(self, network: PolicyNetwork, batch: TrajectoryBatch) -> TokenScores:
        moved = batch.to(self.device)
        with forward_context(self._trainer):
            scores: TokenScores = network(moved.input_ids, moved.response_mask, moved.temperature, packed=moved.packed)
        reshard(network)
        return scores

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the checkpoint belongs to, and the random generators of every rank. Collective."""
        add_identity(checkpoint, self.trained_network(), self.trainer)
        self._settings.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what belongs to another model, and go on with the saved random generators.

        Raises:
            DataError: If the checkpoint has another format, or parameters of other shapes.
        """
        take_identity(checkpoint, self.trained_network(), self.trainer)
        self._settings.load(checkpoint)

    def on_train_epoch_start(self) -> None:
        """Log what the rollouts of this iteration looked like, where the data are rollouts."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, Rollouts):
            log_reduced(self, datamodule.metrics)

    def training_step(self, minibatch: Minibatch, batch_idx: int) -> None:
        """Take one optimiser step over the micro-batches of `minibatch`."""
        optimizer, network = self.optimizers(), self.trained_network()
        assert isinstance(optimizer, LightningOptimizer)
        metrics: dict[str, WeightedMean] = {}
        losses: list[Tensor] = []
        log_ratios: list[Tensor] = []
        for index, batch in enumerate(minibatch.micro_batches):
            is_last = index + 1 == len(minibatch.micro_batches)
            with gradient_sync(network, is_last or not self._defer_gradient_sync):
                loss, found = self.policy_loss(network, batch, minibatch, log_ratios)
                # FSDP and DDP average gradients over ranks, the loss is already divided by the global count.
                self.manual_backward(loss * self.trainer.world_size)
            losses.append(loss.detach())
            metrics = {name: mean + metrics[name] if name in metrics else mean for name, mean in found.items()}
        grad_norm = clip_gradients(network, self._max_grad_norm).to(self.device)
        total = torch.stack(losses).sum()
        self._refuse_non_finite(minibatch, total, grad_norm, batch_idx)
        optimizer.step()
        optimizer.zero_grad()
        self._log_step(metrics, total, grad_norm, log_ratios)
        step_scheduler(self)

    def _refuse_non_finite(self, minibatch: Minibatch, loss: Tensor, grad_norm: Tensor, batch_idx: int) -> None:
        if all_finite(float(loss), float(grad_norm)):
            return
        path = Path(self.trainer.default_root_dir) / f"non_finite_step{self.global_step}_rank{self.global_rank}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        slots = [{n: getattr(b, n) for n in b.__slots__ if n != "packed"} for b in minibatch.to("cpu").micro_batches]
        torch.save({"micro_batches": slots, "loss": loss.cpu(), "grad_norm": grad_norm.cpu()}, path)
        raise TrainingError(
            f"Loss {float(loss)} and gradient norm {float(grad_norm)} must be finite (step {self.global_step}, batch "
            f"{batch_idx}). The weights are unchanged and the batch is saved as {path}. Look for extreme log-prob "
            "differences in it, then lower the learning rate or the clip range."
        )

    def _log_step(
        self, metrics: Mapping[str, WeightedMean], loss: Tensor, grad_norm: Tensor, log_ratios: Sequence[Tensor]
    ) -> None:
        names = sorted(metrics)
        pairs = [[float(metrics[name].total), float(metrics[name].weight)] for name in names]
        reduced = all_reduce([value for pair in pairs for value in pair] + [float(loss)])
        sums = list(zip(names, reduced[:-1:2], reduced[1::2], strict=True))
        values = {f"train/{name}": total / weight for name, total, weight in sums if weight}
        forget_logged(self, [f"train/{name}" for name, _, weight in sums if not weight])
        values |= {"train/loss": reduced[-1], "train/grad_norm": float(grad_norm)}
        values |= prefixed("train", ratio_percentiles(log_ratios))
        values["train/lr"] = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        log_reduced(self, values)
        log_reduced(self, {"entropy": values["train/entropy"]}, prog_bar=True, logger=False)

    def on_validation_epoch_start(self) -> None:
        """Forget the trees of the last evaluation."""
        self._val_batches = []

    def validation_step(self, batch: TreeBatch, batch_idx: int) -> None:
        """Collect evaluated trees; the datamodule has rolled them out."""
        del batch_idx
        self._val_batches.append(batch)

    def on_validation_epoch_end(self) -> None:
        """Log pass@k and what the evaluated trajectories looked like, exactly averaged over ranks."""
        log_reduced(self, describe_evaluation(self._val_batches))
