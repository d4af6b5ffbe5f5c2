"""The three stages of a run: cold start, AEPO, evaluation before and after.

Each stage leaves its result in the run folder (a Hugging Face folder, checkpoints, a JSON file), and a run that is
continued takes what is there instead of doing it again.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from aepo_lightning.app.build import Run, build, build_cold_start, build_logger, build_run
from aepo_lightning.app.freed_memory import keep_freed_memory
from aepo_lightning.app.run_folder import choose_run_folder, resolve_checkpoint
from aepo_lightning.checkpoints import CheckpointSummary, check_architecture
from aepo_lightning.contracts.engine import PolicySource
from aepo_lightning.distributed.first_process import make_once
from aepo_lightning.policy.hf_folder import FolderWriter, base_name
from aepo_lightning.policy.publishing.publish import low_rank_updates, trained_weights
from aepo_lightning.policy.source import PretrainedPolicy
from aepo_lightning.policy.weight_files import together

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class RunReport:
    """What a run did."""

    name: str
    algorithm: str
    folder: Path
    before: Mapping[str, float] = field(default_factory=dict)
    """Held-out metrics before reinforcement learning, named as in TensorBoard."""
    after: Mapping[str, float] = field(default_factory=dict)
    training: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the last iteration."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each stage."""


def run_stages(cfg: DictConfig) -> RunReport:
    """Run whatever the configuration asks for and return what came out."""
    if cfg.num_threads is not None:
        torch.set_num_threads(cfg.num_threads)
    if cfg.trainer.accelerator == "cpu":
        keep_freed_memory()
    L.seed_everything(cfg.seed, verbose=False)
    folder = choose_run_folder(cfg.output_root, cfg.name, cfg.run_dir, cfg.ckpt_path)
    checkpoint = resolve_checkpoint(folder, cfg.ckpt_path)
    _save_config(cfg, folder)
    report = RunReport(name=cfg.name, algorithm=cfg.algorithm.name, folder=folder)
    start = perf_counter()
    policy: PolicySource = build(cfg.model)
    if cfg.coldstart.num_steps:
        policy = _cold_start(cfg, policy, folder)
    if checkpoint is not None:
        check_architecture(checkpoint.record, policy.config, str(checkpoint.path))
    report.seconds["cold start"] = perf_counter() - start
    start = perf_counter()
    run = build_run(cfg, policy, folder)
    report.before = _evaluate_once(run, folder / "evaluation_before.json")
    report.seconds["evaluation before"] = perf_counter() - start
    start = perf_counter()
    _fit(run, cfg.seed, checkpoint)
    report.training = _metrics(run)
    report.seconds["AEPO" if cfg.algorithm.name.startswith("aepo") else cfg.algorithm.name] = perf_counter() - start
    start = perf_counter()
    report.after = _evaluate(run, folder / "evaluation_after.json")
    report.seconds["evaluation after"] = perf_counter() - start
    _export(run, policy, folder)
    run.engine.close()
    figures = ("before", "after", "training", "seconds")
    _write_json(folder / "report.json", {name: dict(getattr(report, name)) for name in figures})
    return report


def _cold_start(cfg: DictConfig, policy: PolicySource, folder: Path) -> PolicySource:
    """Train on demonstrations, unless the folder already has the result; return the trained policy."""
    target = folder / "coldstart"
    make_once(target / "config.json", lambda: _train_cold_start(cfg, policy, folder, target))
    return PretrainedPolicy(name_or_path=str(target))


def _train_cold_start(cfg: DictConfig, policy: PolicySource, folder: Path, target: Path) -> None:
    module, datamodule = build_cold_start(cfg, policy)
    progress = cfg.callbacks.get("progress_bar")
    trainer = L.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=1,
        max_steps=cfg.coldstart.num_steps,
        logger=build_logger(cfg, folder, "coldstart_logs"),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress is not None,
        callbacks=[] if progress is None else [build(progress)],
        default_root_dir=str(folder),
        fast_dev_run=cfg.trainer.fast_dev_run,
    )
    trainer.fit(module, datamodule=datamodule)
    writer = FolderWriter(target=target, source=policy, overwrite=True)
    writer.write_model(trained_weights(module.network))


def _fit(run: Run, seed: int, checkpoint: CheckpointSummary | None) -> None:
    """Train, after a checkpoint if there is one. A run that was finished only gets its weights back."""
    if checkpoint is not None and checkpoint.is_finished(run.trainer.max_epochs or -1):
        run.trainer.limit_train_batches = 0  # or Lightning would have one more iteration rolled out
    # A run that found the stages before in its folder has drawn other random numbers so far than one that did them.
    L.seed_everything(seed, verbose=False)
    run.trainer.fit(run.module, datamodule=run.datamodule, ckpt_path=None if checkpoint is None else checkpoint.path)


def _evaluate_once(run: Run, path: Path) -> Mapping[str, float]:
    if path.is_file():
        found: dict[str, float] = json.loads(path.read_text())
        return found
    return _evaluate(run, path)


def _evaluate(run: Run, path: Path) -> Mapping[str, float]:
    run.trainer.validate(run.module, datamodule=run.datamodule, verbose=False)
    metrics = {name: value for name, value in _metrics(run).items() if name.startswith("val/")}
    _write_json(path, metrics)
    return metrics


def _metrics(run: Run) -> dict[str, float]:
    return {name: float(value) for name, value in run.trainer.callback_metrics.items()}


def _export(run: Run, policy: PolicySource, folder: Path) -> None:
    """Write the trained policy as a Hugging Face folder, and an adapter in a folder of its own. Collective."""
    network, lora = run.module.network, run.module.adapter
    assert network is not None, "the trainer has fitted it"
    is_writer = run.trainer.is_global_zero
    weights = trained_weights(network)
    writer = FolderWriter(target=folder / "policy", source=policy, overwrite=True)
    _write_together(weights, partial(writer.write_model, weights), is_writer)
    if lora is not None:
        updates = low_rank_updates(network)
        writer = FolderWriter(target=folder / "adapter", source=policy, overwrite=True)
        _write_together(updates, partial(writer.write_adapter, lora, updates, base_name(policy)), is_writer)


def _write_together(source: Iterator[Any], write: Callable[[], None], is_writer: bool) -> None:
    """Write on one rank what all ranks gather; an error is everyone's."""

    def act() -> None:
        try:
            if is_writer:
                write()
        finally:
            for _ in source:  # gathering is collective, also after an error
                pass

    together(act)


@rank_zero_only
def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(dict(values), indent=1))
    os.replace(partial, path)


@rank_zero_only
def _save_config(cfg: DictConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
