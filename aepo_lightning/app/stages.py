"""The stages of a run, in the order in which `train.py` calls them.

Each stage leaves its result in the run folder (a Hugging Face folder, checkpoints, a JSON file), and a run that is
continued takes what is there instead of doing it again.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, open_dict, read_write

from aepo_lightning.app.build import Run, build, build_cold_start, build_logger
from aepo_lightning.app.devices import announce_precision, choose_precision, runs_on_gpus
from aepo_lightning.app.freed_memory import keep_freed_memory
from aepo_lightning.app.living_objects import spare_living_objects
from aepo_lightning.app.made_of import MadeOf, cold_start_made_of, evaluation_made_of, is_sft, misfits
from aepo_lightning.app.occupied_folder import settle_with_folder
from aepo_lightning.app.paths import UNWRITABLE, explain_unwritable, writing
from aepo_lightning.app.report import RunReport, print_report
from aepo_lightning.app.run_folder import (
    CONFIG,
    VARIABLE,
    announce,
    choose_run_folder,
    resolve_checkpoint,
    start_of_run,
)
from aepo_lightning.app.run_lock import RunLock
from aepo_lightning.app.saved_config import save_config
from aepo_lightning.app.threads import set_threads
from aepo_lightning.app.user_parts import with_functions
from aepo_lightning.atomic_files import write_json
from aepo_lightning.checkpoints import CheckpointSummary, check_architecture
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.distributed.first_process import JOB_VARIABLES, is_first_process, make_once
from aepo_lightning.errors import ConfigError, TrainingError
from aepo_lightning.policy.hf_folder import FolderWriter, base_name, read_made_of
from aepo_lightning.policy.publishing.gather import low_rank_updates, trained_weights
from aepo_lightning.policy.publishing.write import write_together
from aepo_lightning.policy.source import PretrainedPolicy
from aepo_lightning.training.consistency import check_time_limit
from aepo_lightning.training.lightning_settings import check_options
from aepo_lightning.training.optimizers import check_factories
from aepo_lightning.training.time_limit import TimeLimit


@dataclass(slots=True, kw_only=True)
class RunRecord:
    """A run on its way: where it writes, what it continues, and what it has done so far."""

    cfg: DictConfig
    report: RunReport
    checkpoint: CheckpointSummary | None
    """What it goes on from; None if it starts at its beginning."""
    lock: RunLock | None = None
    """Of the folder, held by the first process of the job."""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    """Variables of the job as they were before the run."""
    start: float = field(default_factory=perf_counter)

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

    def close(self) -> None:
        """Let go of the folder, and take out of the environment what was left there for processes of this run."""
        if self.lock is not None:
            self.lock.release()
        for name, value in self.environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def __enter__(self) -> "RunRecord":
        """Return the record itself."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Close it.

        Raises:
            TrainingError: In place of an error of the disk.
        """
        self.close()
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            kept = "What was finished is kept: continue with ckpt_path=last."
            raise TrainingError(f"{explain_unwritable(error, self.folder)} {kept}") from error


def open_run(cfg: DictConfig) -> RunRecord:
    """Seed everything, choose the folder of the run and lock it, find what it continues, and keep what runs there.

    Raises:
        ConfigError: If the folder cannot be written, is in use, or holds another run; if a setting differs that must
            not; if what `ckpt_path` names is not there; if trainer, optimizer or scheduler are for another kind of
            training; if a benchmark is unknown, trajectories that branch have a time limit, or a run that ends with its
            cold start has one.
        DataError: If the checkpoint is damaged.
    """
    _check_later_stages(cfg)
    set_threads(cfg.num_threads)
    announce_precision(cfg)
    if not runs_on_gpus(cfg):
        keep_freed_memory()
    L.seed_everything(cfg.seed, verbose=False)
    environment = {name: os.environ.get(name) for name in (VARIABLE, *JOB_VARIABLES, "MASTER_ADDR", "MASTER_PORT")}
    folder = choose_run_folder(cfg.output_root, cfg.name, cfg.run_dir, cfg.ckpt_path)
    lock = None
    if is_first_process():
        with writing(folder):
            lock = RunLock(folder)
    with read_write(cfg), open_dict(cfg):
        cfg.ckpt_path = start_of_run(folder, cfg.ckpt_path)
    checkpoint = resolve_checkpoint(folder, cfg.ckpt_path)
    settled = settle_with_folder(cfg, folder, checkpoint)
    with writing(folder):
        _save_config(settled, folder)
    # Processes that Lightning starts inherit the choice, so that all ranks write to one folder.
    os.environ[VARIABLE] = str(folder)
    report = RunReport(name=str(cfg.name), algorithm=cfg.algorithm.name, folder=folder)
    return RunRecord(cfg=settled, report=report, checkpoint=checkpoint, lock=lock, environment=environment)


def _check_later_stages(cfg: DictConfig) -> None:
    """Refuse now what would be refused after the cold start, or would never be looked at."""
    if cfg.time_limit_s is not None and is_sft(cfg) and cfg.coldstart.only:
        raise ConfigError(
            f"`time_limit_s` must be null where coldstart.only=true, but got {cfg.time_limit_s}: it bounds what "
            "follows the cold start. Set coldstart.max_time (days:hours:minutes:seconds) instead."
        )
    check_options(cfg.trainer)
    check_factories(build(cfg.module.get("optimizer")), build(cfg.module.get("scheduler")))
    timeout_s = cfg.rollout.sampling.get("timeout_s")
    if timeout_s is not None:
        check_time_limit(build(with_functions(cfg.algorithm, "algorithm")), timeout_s)
    _benchmark_callbacks(cfg)


def _benchmark_callbacks(cfg: DictConfig) -> list[L.Callback]:
    """Return what asks the benchmarks of a run; a run without any does not import what they take."""
    if not cfg.evaluation.benchmarks:
        return []
    from aepo_lightning.app.evaluation.training_benchmarks import benchmark_callbacks

    return benchmark_callbacks(cfg)


def cold_start(record: RunRecord) -> PolicySource:
    """Return the policy to start from, after supervised training where the configuration asks for it.

    A folder that has the result already is not trained again, if the result was made of the same or the run is past it.
    """
    cfg, checkpoint = record.cfg, record.checkpoint
    with record.stage("cold start"):
        policy: PolicySource = build(cfg.model)
        if cfg.coldstart.num_steps or is_sft(cfg):
            target, start_from, own = record.folder / "coldstart", policy, cold_start_made_of(cfg)

            def fits() -> bool:
                return checkpoint is not None or not _misfits("cold start", read_made_of(target), own)

            if is_sft(cfg):
                if not ((target / "config.json").is_file() and fits()):
                    _train_sft(cfg, start_from, record.folder, target, own)
            else:
                make_once(
                    target / "config.json",
                    lambda: _train_cold_start(cfg, start_from, record.folder, target, own),
                    is_sound=fits,
                )
            policy = PretrainedPolicy(str(target))
        if checkpoint is not None:
            check_architecture(checkpoint.identity, policy.config, str(checkpoint.path))
    return policy


def ends_with_cold_start(record: RunRecord) -> bool:
    """Return whether the run is over after its cold start, and say where the policy is."""
    is_over = is_sft(record.cfg) and bool(record.cfg.coldstart.only)
    if is_over:
        announce("The policy after the cold start is in %s.", record.folder / "coldstart")
    return is_over


def _misfits(stage: str, found: MadeOf | None, own: MadeOf) -> bool:
    differing = misfits(found, own)
    if differing:
        announce("The %s in the folder was made of other %s: it is made again.", stage, " and ".join(differing))
    return bool(differing)


def evaluate_before(record: RunRecord, run: Run) -> None:
    """Evaluate on held-out questions, unless the folder has the result of the same evaluation already."""
    path, made_of = record.folder / "evaluation_before.json", evaluation_made_of(record.cfg)
    own = dict(made_of)
    if record.checkpoint is not None:
        del own["code"]  # it was measured before code changed
    with record.stage("evaluation before"):
        spare_living_objects()
        found = _read_evaluation(path)
        if found is None or _misfits("evaluation before", found.made_of, own):
            found = _Evaluation(_evaluate(run), made_of)
            _write_json(path, {**found.metrics, "made_of": dict(made_of)})
        record.report.before = found.metrics


class _Evaluation(NamedTuple):
    metrics: Mapping[str, float]
    made_of: MadeOf | None


def _read_evaluation(path: Path) -> _Evaluation | None:
    """Return what an evaluation left; None if there is nothing that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    made_of = found.pop("made_of", None)
    return _Evaluation(found, made_of or None)


def fit(record: RunRecord, run: Run) -> None:
    """Train, after a checkpoint if there is one. A run that was finished only gets its weights back."""
    checkpoint, name = record.checkpoint, record.report.algorithm
    with record.stage("AEPO" if name.startswith("aepo") else name):
        callbacks: list[L.Callback] = run.trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:0] = _benchmark_callbacks(record.cfg)
        if record.cfg.time_limit_s is not None:
            callbacks.insert(0, TimeLimit(_seconds_to_train(record)))
        if checkpoint is not None and checkpoint.is_finished(run.trainer.max_epochs or -1):
            run.trainer.limit_train_batches = 0  # or Lightning would have one more iteration rolled out
        # A run that found the stages before in its folder has drawn other random numbers than one that did them.
        L.seed_everything(record.cfg.seed, verbose=False)
        path = None if checkpoint is None else checkpoint.path
        run.trainer.fit(run.module, datamodule=run.datamodule, ckpt_path=path)
        record.report.training = _metrics(run)


def _seconds_to_train(record: RunRecord) -> float:
    """Return what is left of the time limit, less what the end of the run takes: an evaluation like the one before."""
    limit, evaluation = float(record.cfg.time_limit_s), record.report.seconds.get("evaluation before", 0.0)
    return limit - (perf_counter() - record.start) - max(1.5 * evaluation, 0.1 * limit)


def evaluate_after(record: RunRecord, run: Run) -> None:
    """Evaluate on held-out questions."""
    with record.stage("evaluation after"):
        record.report.after = _evaluate(run)
        _write_json(record.folder / "evaluation_after.json", record.report.after)


def export(record: RunRecord, run: Run, policy: PolicySource) -> None:
    """Write the trained policy as a Hugging Face folder, then the report of the run, and print it."""
    _export(run, policy, record.folder)
    run.engine.close()
    report = record.report
    figures = ("before", "after", "training", "seconds")
    _write_json(record.folder / "report.json", {name: dict(getattr(report, name)) for name in figures})
    rank_zero_only(print_report)(report)


def _train_sft(cfg: DictConfig, policy: PolicySource, folder: Path, target: Path, made_of: MadeOf) -> None:
    from aepo_lightning.app.sft import free_memory, train_sft  # takes a quarter of a second, and few runs need it

    train_sft(cfg, policy, folder, target, made_of)
    free_memory()


def _train_cold_start(cfg: DictConfig, policy: PolicySource, folder: Path, target: Path, made_of: MadeOf) -> None:
    module, datamodule = build_cold_start(cfg, policy)
    progress = cfg.callbacks.get("progress_bar")
    precision: Any = choose_precision(cfg)
    trainer = L.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=1,
        precision=precision,
        max_steps=cfg.coldstart.num_steps,
        max_time=cfg.coldstart.max_time,
        logger=build_logger(cfg, folder, "coldstart_logs"),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress is not None,
        callbacks=[] if progress is None else [build(progress)],
        default_root_dir=str(folder),
        fast_dev_run=cfg.trainer.fast_dev_run,
    )
    trainer.fit(module, datamodule=datamodule)
    writer = FolderWriter(target=target, source=policy, overwrite=True, made_of=made_of)
    writer.write_model(trained_weights(module.trained_network()))


def _evaluate(run: Run) -> Mapping[str, float]:
    run.trainer.validate(run.module, datamodule=run.datamodule, verbose=False)
    return {name: value for name, value in _metrics(run).items() if name.startswith("val/")}


def _metrics(run: Run) -> dict[str, float]:
    return {name: float(value) for name, value in run.trainer.callback_metrics.items()}


def _export(run: Run, policy: PolicySource, folder: Path) -> None:
    """Write the trained policy as a Hugging Face folder, and an adapter in a folder of its own. Collective."""
    network, lora = run.module.network, run.module.adapter
    assert network is not None, "the trainer has fitted it"
    is_writer = run.trainer.is_global_zero
    weights = trained_weights(network)
    writer = FolderWriter(target=folder / "policy", source=policy, overwrite=True)
    write_together(weights, partial(writer.write_model, weights), is_writer)
    if lora is not None:
        updates = low_rank_updates(network)
        writer = FolderWriter(target=folder / "adapter", source=policy, overwrite=True)
        write_together(updates, partial(writer.write_adapter, lora, updates, base_name(policy)), is_writer)


@rank_zero_only
def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_json(path, values)


@rank_zero_only
def _save_config(cfg: DictConfig, folder: Path) -> None:
    save_config(cfg, folder / CONFIG)
