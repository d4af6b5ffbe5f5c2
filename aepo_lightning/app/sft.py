"""The cold start on conversations: on all ranks, with the strategy and the memory settings of the next stage.

Unlike the cold start on demonstrations, minutes in one process, it leaves checkpoints and goes on from them.
They lie in a folder that is named after what they were made of, so that every rank finds the same ones, and are removed
when the policy is there.
"""

import gc
import math
import shutil
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from aepo_lightning.app.build import (
    assemble_trainer,
    build,
    build_chat_format,
    build_logger,
    build_tools,
    try_tools,
)
from aepo_lightning.app.made_of import MadeOf
from aepo_lightning.checkpoints import find_last, verify_checkpoint
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.distributed.collectives import on_rank_zero
from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.hf_folder import FolderWriter
from aepo_lightning.policy.publishing.gather import trained_weights
from aepo_lightning.policy.publishing.write import write_together
from aepo_lightning.training.coldstart import ColdStartModule
from aepo_lightning.training.sft import SFTDataModule, SFTSettings, read_rows

CHECKPOINTS = "coldstart_checkpoints"
"""Folder of a run that has them."""
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
_MEMORY = ("mixed_precision", "cpu_offload", "reshard_after_forward", "defer_gradient_sync", "fused_norms")
"""Settings of the module that the next stage trains with, which this one shares."""


def train_sft(cfg: DictConfig, policy: PolicySource, folder: Path, target: Path, made_of: MadeOf) -> None:
    """Train, from the last checkpoint where there is one, and write the policy as a Hugging Face folder. Collective.

    Args:
        cfg: Of the run.
        policy: What it starts from.
        folder: Of the run.
        target: Where the policy goes.
        made_of: Digests of what it is made of.

    Raises:
        ConfigError: If settings do not fit together.
        DataError: If conversations cannot be read, or too many cannot be used; if the checkpoint is damaged.
        TrainingError: If the loss is not finite.
    """
    datamodule = build_sft_data(cfg, policy)
    module = build_sft_module(cfg, policy, datamodule.num_steps)
    checkpoints = folder / CHECKPOINTS / _name_of(made_of)
    trainer = _build_trainer(cfg, folder, checkpoints, datamodule)
    last = find_last(checkpoints)
    if last is not None:
        verify_checkpoint(last)
    trainer.fit(module, datamodule=datamodule, ckpt_path=last)
    weights = trained_weights(module.trained_network())
    writer = FolderWriter(target=target, source=policy, overwrite=True, made_of=made_of)
    write_together(weights, partial(writer.write_model, weights), trainer.is_global_zero)
    on_rank_zero(lambda: shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True))


def free_memory() -> None:
    """Give the next stage the memory of this one: trainer and module refer to each other."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def build_sft_data(cfg: DictConfig, policy: PolicySource) -> SFTDataModule:
    """Read the conversations as the chat format and the tools of the run write them.

    Raises:
        ConfigError: If a setting has no meaning, or a tool of the next stage cannot work here.
        DataError: If conversations cannot be read, or too many cannot be used.
    """
    own, tools = cfg.coldstart, build_tools(cfg.tools)
    if not own.only:
        try_tools(tools)
    chat_format = build_chat_format(cfg, policy.tokenizer, tools.specs)
    settings = SFTSettings(
        batch_size=own.batch_size,
        num_epochs=own.num_epochs,
        num_steps=own.num_steps,
        packing=own.packing,
        max_tokens_per_micro_batch=own.max_tokens_per_micro_batch,
        steps_per_part=own.steps_per_part,
        seed=cfg.seed,
    )
    rows = read_rows(build(own.data), chat_format, tools.specs, policy.tokenizer, build(own.limits))
    return SFTDataModule(rows, settings, policy.tokenizer.pad_token_id)


def build_sft_module(cfg: DictConfig, policy: PolicySource, num_steps: int) -> ColdStartModule:
    """Build the module, whose learning rate follows its schedule over so many optimiser steps.

    Raises:
        ConfigError: If a setting has no meaning.
    """
    own, shared = cfg.coldstart, cfg.module
    return ColdStartModule(
        policy,
        build(own.optimizer),
        scheduler_of(own.schedule, own.warmup_ratio, num_steps),
        own.max_grad_norm,
        logprob_chunk_size=own.logprob_chunk_size,
        gradient_checkpointing=own.gradient_checkpointing,
        adapter=None if shared.get("adapter") is None else build(shared.adapter),
        **{name: shared[name] for name in _MEMORY},
    )


def scheduler_of(schedule: str, warmup_ratio: float | int, num_steps: int) -> partial[LRScheduler]:
    """Return what makes the schedule of a learning rate.

    Args:
        schedule: `cosine` and `linear` fall to zero after the warm-up, `constant` stays.
        warmup_ratio: Share of the steps in which the rate rises.
        num_steps: Optimiser steps.

    Raises:
        ConfigError: If the schedule is unknown, or the share is none.
    """
    if schedule not in _SCHEDULES:
        raise ConfigError(f"`schedule` must be one of {', '.join(_SCHEDULES)}, but got {schedule!r}.")
    if not 0 <= warmup_ratio <= 1:
        raise ConfigError(
            f"`warmup_ratio` must be in [0, 1], but got {warmup_ratio}. 0.1 is what the paper's script has."
        )
    return partial(_scheduler, _SCHEDULES[schedule], math.ceil(warmup_ratio * num_steps), num_steps)


def _scheduler(name: str, num_warmup_steps: int, num_steps: int, optimizer: Optimizer) -> LRScheduler:
    made: LRScheduler = get_scheduler(name, optimizer, num_warmup_steps=num_warmup_steps, num_training_steps=num_steps)
    return made


def _build_trainer(cfg: DictConfig, folder: Path, checkpoints: Path, datamodule: SFTDataModule) -> L.Trainer:
    """Build a trainer whose epochs are the parts of the training: each ends with a validation and a checkpoint."""
    named = [cfg.callbacks.get(name) for name in ("rank_guard", "progress_bar")]
    callbacks: list[Any] = [build(node) for node in named if node is not None]
    return assemble_trainer(
        cfg,
        folder,
        callbacks=[*callbacks, build(cfg.coldstart.checkpoint, dirpath=checkpoints)],
        logger=build_logger(cfg, folder, "coldstart_logs"),
        max_epochs=-1,
        max_steps=datamodule.num_steps,
        max_time=cfg.coldstart.max_time,
        check_val_every_n_epoch=1,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if datamodule.num_held_out else 0,
        inference_mode=False,
    )


def _name_of(made_of: MadeOf) -> str:
    """Return a name for checkpoints of the same configuration and files."""
    parts = f"{made_of['configuration']}/{made_of['files']}"
    return blake2b(parts.encode(), digest_size=8).hexdigest()
