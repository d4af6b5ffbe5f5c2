"""The three stages of a run: cold start, AEPO, evaluation before and after.

Each stage leaves its result in the run folder (a Hugging Face folder, checkpoints, a JSON file), and a run that is
continued takes what is there instead of doing it again.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from aepo_lightning.app.build import Run, build, build_cold_start, build_logger, build_run
from aepo_lightning.app.run_folder import choose_run_folder, resolve_checkpoint
from aepo_lightning.policy import PretrainedPolicy
from aepo_lightning.protocols import PolicySource

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
    L.seed_everything(cfg.seed, verbose=False)
    folder = choose_run_folder(cfg.output_root, cfg.name, cfg.run_dir, cfg.ckpt_path)
    checkpoint = resolve_checkpoint(folder, cfg.ckpt_path)
    _save_config(cfg, folder)
    report = RunReport(name=cfg.name, algorithm=cfg.algorithm.name, folder=folder)
    start = perf_counter()
    policy: PolicySource = build(cfg.model)
    if cfg.coldstart.num_steps:
        policy = _cold_start(cfg, policy, folder)
    report.seconds["cold start"] = perf_counter() - start
    start = perf_counter()
    run = build_run(cfg, policy, folder)
    report.before = _evaluate_once(run, folder / "evaluation_before.json")
    report.seconds["evaluation before"] = perf_counter() - start
    start = perf_counter()
    run.trainer.fit(run.module, datamodule=run.datamodule, ckpt_path=checkpoint)
    report.training = _metrics(run)
    report.seconds["AEPO" if cfg.algorithm.name.startswith("aepo") else cfg.algorithm.name] = perf_counter() - start
    start = perf_counter()
    report.after = _evaluate(run, folder / "evaluation_after.json")
    report.seconds["evaluation after"] = perf_counter() - start
    _export(run, policy, folder / "policy")
    run.engine.close()
    figures = ("before", "after", "training", "seconds")
    _write_json(folder / "report.json", {name: dict(getattr(report, name)) for name in figures})
    return report


def _cold_start(cfg: DictConfig, policy: PolicySource, folder: Path) -> PolicySource:
    """Train on demonstrations, unless the folder already has the result; return the trained policy."""
    target = folder / "coldstart"
    if not (target / "config.json").is_file():
        module, datamodule = build_cold_start(cfg, policy)
        trainer = L.Trainer(
            accelerator=cfg.trainer.accelerator,
            devices=1,
            max_steps=cfg.coldstart.num_steps,
            logger=build_logger(cfg, folder, "coldstart_logs"),
            enable_checkpointing=False,
            enable_model_summary=False,
            callbacks=[TQDMProgressBar(refresh_rate=10)],
            default_root_dir=str(folder),
            fast_dev_run=cfg.trainer.fast_dev_run,
        )
        trainer.fit(module, datamodule=datamodule)
        _save_pretrained(module.network.model.state_dict(), policy, target)
    return PretrainedPolicy(name_or_path=str(target))


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


def _export(run: Run, policy: PolicySource, target: Path) -> None:
    """Write the trained policy as a Hugging Face folder, in the precision it was trained in. Collective under FSDP."""
    network = run.module.network
    assert network is not None, "the trainer has fitted it"
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    whole = get_model_state_dict(network, options=options)
    weights = {name.removeprefix("model."): value for name, value in whole.items() if isinstance(value, torch.Tensor)}
    if run.trainer.is_global_zero:
        _save_pretrained(weights, policy, target)


def _save_pretrained(weights: Mapping[str, torch.Tensor], policy: PolicySource, target: Path) -> None:
    model = policy.build_model()
    model.load_state_dict(dict(weights))
    partial = target.with_name(target.name + ".partial")
    model.save_pretrained(partial)
    policy.tokenizer.save_pretrained(partial)
    _replace_folder(partial, target)


def _replace_folder(new: Path, target: Path) -> None:
    """Put a finished folder in place; the one before stays whole until then."""
    old = target.with_name(target.name + ".old")
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


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
