"""The stages of a run, in the order in which `train.py` calls them.

Each stage leaves its result in the run folder (a Hugging Face folder, checkpoints, a JSON file), and a run that is
continued takes what is there instead of doing it again.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from rich.console import Console

from aepo_lightning.app.build import Run, build, build_cold_start, build_logger
from aepo_lightning.app.freed_memory import keep_freed_memory
from aepo_lightning.app.living_objects import spare_living_objects
from aepo_lightning.app.report import RunReport, render_report
from aepo_lightning.app.run_folder import choose_run_folder, resolve_checkpoint
from aepo_lightning.app.saved_config import save_config
from aepo_lightning.atomic_files import write_json
from aepo_lightning.checkpoints import CheckpointSummary, check_architecture
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.distributed.collectives import together
from aepo_lightning.distributed.first_process import make_once
from aepo_lightning.policy.hf_folder import FolderWriter, base_name
from aepo_lightning.policy.publishing.gather import low_rank_updates, trained_weights
from aepo_lightning.policy.source import PretrainedPolicy

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class RunRecord:
    """A run on its way: where it writes, what it continues, and what it has done so far."""

    cfg: DictConfig
    report: RunReport
    checkpoint: CheckpointSummary | None
    """What it goes on from; None if it starts at its beginning."""

    @property
    def folder(self) -> Path:
        """Where everything of the run lies."""
        return self.report.folder

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a stage."""
        start = perf_counter()
        yield
        self.report.seconds[name] = perf_counter() - start


def open_run(cfg: DictConfig) -> RunRecord:
    """Seed everything, choose the folder of the run, keep the configuration there, and find what it continues."""
    if cfg.num_threads is not None:
        torch.set_num_threads(cfg.num_threads)
    if cfg.trainer.accelerator == "cpu":
        keep_freed_memory()
    L.seed_everything(cfg.seed, verbose=False)
    folder = choose_run_folder(cfg.output_root, cfg.name, cfg.run_dir, cfg.ckpt_path)
    checkpoint = resolve_checkpoint(folder, cfg.ckpt_path)
    _save_config(cfg, folder)
    report = RunReport(name=cfg.name, algorithm=cfg.algorithm.name, folder=folder)
    return RunRecord(cfg=cfg, report=report, checkpoint=checkpoint)


def cold_start(record: RunRecord) -> PolicySource:
    """Return the policy to start from, after supervised training on demonstrations where the configuration asks for it.

    A folder that has the result already is not trained again.
    """
    cfg, checkpoint = record.cfg, record.checkpoint
    with record.stage("cold start"):
        policy: PolicySource = build(cfg.model)
        if cfg.coldstart.num_steps:
            target, start_from = record.folder / "coldstart", policy
            make_once(target / "config.json", lambda: _train_cold_start(cfg, start_from, record.folder, target))
            policy = PretrainedPolicy(str(target))
        if checkpoint is not None:
            check_architecture(checkpoint.identity, policy.config, str(checkpoint.path))
    return policy


def evaluate_before(record: RunRecord, run: Run) -> None:
    """Evaluate on held-out questions, unless the folder has the result already."""
    path = record.folder / "evaluation_before.json"
    with record.stage("evaluation before"):
        spare_living_objects()
        record.report.before = json.loads(path.read_text()) if path.is_file() else _evaluate(run, path)


def fit(record: RunRecord, run: Run) -> None:
    """Train, after a checkpoint if there is one. A run that was finished only gets its weights back."""
    checkpoint, name = record.checkpoint, record.report.algorithm
    with record.stage("AEPO" if name.startswith("aepo") else name):
        if checkpoint is not None and checkpoint.is_finished(run.trainer.max_epochs or -1):
            run.trainer.limit_train_batches = 0  # or Lightning would have one more iteration rolled out
        # A run that found the stages before in its folder has drawn other random numbers than one that did them.
        L.seed_everything(record.cfg.seed, verbose=False)
        path = None if checkpoint is None else checkpoint.path
        run.trainer.fit(run.module, datamodule=run.datamodule, ckpt_path=path)
        record.report.training = _metrics(run)


def evaluate_after(record: RunRecord, run: Run) -> None:
    """Evaluate on held-out questions."""
    with record.stage("evaluation after"):
        record.report.after = _evaluate(run, record.folder / "evaluation_after.json")


def export(record: RunRecord, run: Run, policy: PolicySource) -> None:
    """Write the trained policy as a Hugging Face folder, then the report of the run, and print it."""
    _export(run, policy, record.folder)
    run.engine.close()
    report = record.report
    figures = ("before", "after", "training", "seconds")
    _write_json(record.folder / "report.json", {name: dict(getattr(report, name)) for name in figures})
    _print_report(report)


@rank_zero_only
def _print_report(report: RunReport) -> None:
    Console().print(render_report(report))


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
    write_json(path, values)


@rank_zero_only
def _save_config(cfg: DictConfig, folder: Path) -> None:
    save_config(cfg, folder / "config.yaml")
