"""The supervised cold start: next-token prediction on demonstrations, tool results masked (the paper's stage 0)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from jaxtyping import Bool, Int
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase

from aepo_lightning.chat_formats import message_end_id
from aepo_lightning.contracts.chat_format import ChatFormat
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.contracts.question import Demonstration, DemonstrationSource, SegmentSource
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.tiled_mlp import tile_gated_mlps
from aepo_lightning.tasks.asked import ask_demonstration
from aepo_lightning.training.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    build_optimizer,
    build_scheduler,
    check_factories,
)


@dataclass(slots=True, kw_only=True, eq=False)
class DemonstrationBatch:
    """Demonstrations as right-padded rows."""

    input_ids: Int[Tensor, "batch seq"]
    response_mask: Bool[Tensor, "batch response"]
    """True where the predicted token was written by the demonstrator, hence is trained."""

    def to(self, device: torch.device | str) -> "DemonstrationBatch":
        """Return the batch on `device`."""
        return DemonstrationBatch(input_ids=self.input_ids.to(device), response_mask=self.response_mask.to(device))


def encode_demonstration(
    demonstration: Demonstration, chat_format: ChatFormat, eos_token_id: int
) -> tuple[list[int], list[bool]]:
    """Return tokens and, for each, whether it is trained. The end of the message, `eos_token_id`, is."""
    tokens = chat_format.encode_prompt(demonstration.question.messages)
    trained = [False] * len(tokens)
    for turn in demonstration.turns:
        is_own = turn.source is SegmentSource.POLICY
        ids = chat_format.encode_text(turn.text) if is_own else chat_format.encode_results([turn.text])[0]
        tokens += ids
        trained += [is_own] * len(ids)
    return [*tokens, eos_token_id], [*trained, True]


class DemonstrationDataModule(LightningDataModule):
    """Batches of demonstrations, each seen once."""

    def __init__(
        self,
        source: DemonstrationSource,
        chat_format: ChatFormat,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 64,
    ) -> None:
        """Keep the source.

        Args:
            source: Where demonstrations come from.
            chat_format: How tool results are written; must be the rollouts' own.
            tokenizer: Tokenizer of the policy.
            batch_size: Demonstrations per optimiser step and rank.
        """
        super().__init__()
        self._source = source
        self._chat_format = chat_format
        self._tokenizer = tokenizer
        self._end_token_id = message_end_id(tokenizer)
        self._batch_size = batch_size

    def train_dataloader(self) -> Iterable[DemonstrationBatch]:
        """Return an endless loader; the trainer's `max_steps` ends it."""
        return _Batches(self)

    def batch(self, step: int) -> DemonstrationBatch:
        """Return the batch of an optimiser step; every rank has its own."""
        assert self.trainer is not None
        first = (step * self.trainer.world_size + self.trainer.global_rank) * self._batch_size
        rows = [
            encode_demonstration(ask_demonstration(self._source, index), self._chat_format, self._end_token_id)
            for index in range(first, first + self._batch_size)
        ]
        return collate_demonstrations(rows, self._tokenizer.pad_token_id)


def collate_demonstrations(rows: Sequence[tuple[list[int], list[bool]]], pad_token_id: int) -> DemonstrationBatch:
    """Pad encoded demonstrations to one width."""
    width = max(len(tokens) for tokens, _ in rows)
    return DemonstrationBatch(
        input_ids=torch.tensor([tokens + [pad_token_id] * (width - len(tokens)) for tokens, _ in rows]),
        response_mask=torch.tensor([mask[1:] + [False] * (width - len(mask)) for _, mask in rows]),
    )


class _Batches:
    """All demonstrations, batch by batch. Not a `DataLoader`, for which Lightning would ask for worker processes."""

    def __init__(self, datamodule: DemonstrationDataModule) -> None:
        self._datamodule = datamodule

    def __iter__(self) -> Iterator[DemonstrationBatch]:
        return map(self._datamodule.batch, count())


class ColdStartModule(LightningModule):
    """Trains a fresh policy on demonstrations."""

    def __init__(
        self,
        policy: PolicySource,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        max_grad_norm: float = 1.0,
    ) -> None:
        """Build the network.

        Args:
            policy: Architecture, tokenizer and first weights.
            optimizer: Called with the parameters.
            scheduler: Called with the optimizer; stepped once per optimiser step.
            max_grad_norm: Gradients are scaled down to this L2 norm.

        Raises:
            ConfigError: If optimizer or scheduler are of a kind that cannot be stepped here.
        """
        super().__init__()
        check_factories(optimizer, scheduler)
        self.automatic_optimization = False
        self.policy = policy
        self.network = PolicyNetwork(policy.build_model())
        self._mlps = tile_gated_mlps(self.network.model)
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

    def training_step(self, batch: DemonstrationBatch, batch_idx: int) -> None:
        """Take one step on the mean cross-entropy of the demonstrator's tokens."""
        del batch_idx
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        is_scored = nn.functional.pad(batch.response_mask, (0, 1))  # nothing follows the last token
        with self._mlps.last_layer_at(is_scored):
            scores = self.network(batch.input_ids, batch.response_mask)
        num_tokens = batch.response_mask.sum()
        loss = -scores.logprobs.sum() / num_tokens
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(self.network.parameters(), self._max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, LRScheduler):
            scheduler.step()
        self.log("coldstart/loss", loss.detach(), prog_bar=True)
        self.log("coldstart/entropy", scores.entropies.sum() / num_tokens)
