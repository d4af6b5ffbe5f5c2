"""From configuration to objects. The only place of the project that calls Hydra's `instantiate`."""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf, open_dict
from transformers import PreTrainedTokenizerBase

from aepo_lightning.app.devices import choose_precision, runs_on_gpus
from aepo_lightning.app.user_parts import (
    check_callback,
    find_target,
    refuse_strangers,
    with_functions,
    without_settings_of,
)
from aepo_lightning.checkpoints import EitherCheckpointIO
from aepo_lightning.contracts.blame import OWN_PACKAGE, describe_failure, is_own, part_name
from aepo_lightning.contracts.chat_format import ChatFormat
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.contracts.question import DemonstrationSource, Task
from aepo_lightning.contracts.tool import BranchingToolRunner, Tool, ToolSpec
from aepo_lightning.errors import AepoError, ConfigError, ToolUnavailableError, boundary
from aepo_lightning.event_loop import run_in_event_loop
from aepo_lightning.policy.publishing.archive import WeightsArchive
from aepo_lightning.rewards import PaperReward
from aepo_lightning.rollout import RolloutJournal
from aepo_lightning.tools import FunctionTool, function_tool
from aepo_lightning.training.algorithm import Algorithm
from aepo_lightning.training.coldstart import ColdStartModule
from aepo_lightning.training.datamodule import RolloutDataModule
from aepo_lightning.training.demonstrations import DemonstrationDataModule
from aepo_lightning.training.module import AEPOModule
from aepo_lightning.training.round_trip import RoundTrip

T = TypeVar("T")

_FSDP1 = "lightning.pytorch.strategies.FSDPStrategy"


def build(node: Any, **extra: Any) -> Any:
    """Instantiate a node of the configuration with plain lists and dicts inside.

    Args:
        node: A mapping with `_target_`, or one whose values are.
        extra: Further arguments of the target, passed as they are.

    Raises:
        AepoError: Whatever the target raises on purpose, without Hydra's wrapping; its `ValueError` as `ConfigError`.
    """
    try:
        if not extra:
            return instantiate(node, _convert_="all")
        # Arguments given to `instantiate` itself would be merged into the configuration: no dataclass survives that.
        return _checked(instantiate(node, _convert_="all", _partial_=True), **extra)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, AepoError):
            raise cause from None
        if isinstance(cause, (ValueError, MisconfigurationException)):
            raise ConfigError(str(cause)) from error
        if "Error locating target" in str(error):
            raise ConfigError(_not_found(error)) from error
        if isinstance(cause, Exception) and _quoted(error).partition(".")[0] != OWN_PACKAGE:
            raise ConfigError(_failed(_quoted(error), cause)) from error
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The objects of the reinforcement-learning stage."""

    module: AEPOModule
    datamodule: RolloutDataModule
    trainer: L.Trainer
    engine: Engine


def build_run(cfg: DictConfig, policy: PolicySource, folder: Path) -> Run:
    """Build module, datamodule, engine and trainer around a policy.

    Raises:
        ConfigError: If the settings do not fit together.
    """
    engine = build_engine(cfg, policy)
    algorithm: Algorithm = build(with_functions(cfg.algorithm, "algorithm"))
    datamodule = build_data(cfg, engine, algorithm, folder)
    module: AEPOModule = build(cfg.module, policy=policy, algorithm=algorithm)
    return Run(module=module, datamodule=datamodule, trainer=build_trainer(cfg, folder), engine=engine)


def build_engine(cfg: DictConfig, policy: PolicySource) -> Engine:
    """Build what generates. Its `device: auto` is a GPU only where the trainer computes on one."""
    settings = cfg.engine.copy()
    if settings.get("device") == "auto" and not runs_on_gpus(cfg):
        settings.device = "cpu"
    engine: Engine = build(settings, policy=policy)
    return engine


def build_data(cfg: DictConfig, engine: Engine, algorithm: Algorithm, folder: Path) -> RolloutDataModule:
    """Build what rolls out, with its journal below `folder`."""
    datamodule: RolloutDataModule = build(
        cfg.data,
        engine=engine,
        algorithm=algorithm,
        tools=build_tools(cfg.tools),
        reward=build(with_functions(without_settings_of(PaperReward, cfg.reward), "reward")),
        chat_format=partial(build_chat_format, cfg),
        sampling=build(cfg.rollout.sampling),
        experience=build(cfg.experience),
        scoring=build(cfg.rollout.scoring),
        publication_check=build(cfg.publication_check),
        journal=RolloutJournal(folder / "rollouts"),
        weights_archive=WeightsArchive(folder / "rollouts" / "weights", cfg.rollout.keep_weights),
    )
    return datamodule


def build_chat_format(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase, specs: Sequence[ToolSpec]) -> ChatFormat:
    """Build the chat format of a run that offers these tools."""
    chat_format: ChatFormat = build(cfg.rollout.chat_format, tokenizer=tokenizer, specs=specs)
    return chat_format


def build_tools(cfg: DictConfig) -> BranchingToolRunner:
    """Build the tools of a run and the runtime that calls them.

    Args:
        cfg: The runtime under `runtime`, and each tool under its name; null is none. A `_target_` that is a function,
            decorated with `@tool` or not, is itself the tool if nothing but `limits`, `version` and `isolation` stands
            beside it.

    Raises:
        ConfigError: If a tool cannot be found or built, or does not bear the name it stands under.
        ToolUnavailableError: If what stands behind one cannot be reached.
    """
    tools = []
    for name, node in cfg.items():
        if name == "runtime" or node is None:
            continue
        try:
            tools.append(_build_tool(str(name), node))
        except ValueError as error:
            raise ConfigError(f"`tools.{name!s}`: {error}") from error
        except ToolUnavailableError as error:
            what = f"See whether `tools.{name!s}` names it rightly, and whether it runs."
            raise ToolUnavailableError(f"`tools.{name!s}`: {error} {what}") from error
    runtime: BranchingToolRunner = build(cfg.runtime, tools=tools)
    return runtime


def _build_tool(name: str, node: Any) -> Any:
    if not (isinstance(node, DictConfig) and "_target_" in node):
        raise ConfigError(f"A tool must be a mapping with a `_target_`, but got {node!r}. Name a class or a function.")
    target = find_target(node._target_, "")
    settings = {str(key) for key in node} - {"_target_"}
    if isinstance(target, Tool) and not isinstance(target, FunctionTool | type) and not settings:
        return target  # an object of the module, finished
    if not inspect.isclass(target) and settings <= {"limits", "version", "isolation"}:
        own: Any = OmegaConf.to_container(OmegaConf.masked_copy(node, list(settings)), resolve=True)
        return function_tool(target, name=name, **own)
    takes_name = "name" not in settings and "name" in inspect.signature(target).parameters
    tool = build(node, name=name) if takes_name else build(node)
    own_name = tool.spec.name if isinstance(tool, Tool) else name
    if own_name != name and "name" not in settings:
        raise ConfigError(f"The key must be the name of the tool, but that is {own_name!r}. Rename the key.")
    return tool


def find_modules_here() -> None:
    """Let the configuration name what lies in the working directory, such as `_target_: my_tools.add`."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())


def build_trainer(cfg: DictConfig, folder: Path) -> L.Trainer:
    """Build the trainer of the reinforcement-learning stage; logs and checkpoints go below `folder`."""
    callbacks = cfg.callbacks.copy()
    with open_dict(callbacks):
        for node in callbacks.values():
            if node is not None and OmegaConf.is_missing(node, "dirpath"):
                node.dirpath = str(folder / "checkpoints")
    built = [check_callback(str(name), build(node)) for name, node in callbacks.items() if node is not None]
    return assemble_trainer(cfg, folder, callbacks=built, logger=build_logger(cfg, folder))


def assemble_trainer(cfg: DictConfig, folder: Path, **options: Any) -> L.Trainer:
    """Build a trainer on the devices and with the strategy of a configuration.

    Args:
        cfg: The configuration.
        folder: Of the run.
        options: Of the trainer, in place of the configuration's.
    """
    trainer: L.Trainer = build(
        cfg.trainer,
        strategy=build_strategy(cfg),
        precision=choose_precision(cfg),
        default_root_dir=str(folder),
        **options,
    )
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = EitherCheckpointIO()
    return trainer


def build_strategy(cfg: DictConfig) -> Any:
    """Build the strategy; one that shards over all ranks is told how many there are.

    Raises:
        ConfigError: If their number is not written in the configuration, or the strategy cannot run what is.
    """
    strategy = cfg.strategy.copy()
    if strategy._target_ == _FSDP1:
        _check_fsdp1(cfg)
    if OmegaConf.is_missing(strategy, "data_parallel_size"):
        devices, nodes = cfg.trainer.devices, cfg.trainer.num_nodes
        if not (isinstance(devices, int) and devices > 0):
            raise ConfigError(f"`trainer.devices` must be a number of devices for FSDP2, but got {devices!r}.")
        strategy.data_parallel_size = devices * nodes
    return build(strategy)


def _check_fsdp1(cfg: DictConfig) -> None:
    """Refuse what Lightning would refuse late, or not at all because the strategy has a precision of its own."""
    accelerator, precision = cfg.trainer.accelerator, choose_precision(cfg)
    if not runs_on_gpus(cfg):
        raise ConfigError(
            f"`trainer.accelerator` must be gpu for `strategy=fsdp1`, but got {accelerator}. `strategy=fsdp` also "
            "runs on CPUs."
        )
    if precision not in ("32-true", "32", "None"):
        raise ConfigError(
            f"`trainer.precision` must be 32-true for `strategy=fsdp1`, but got {precision}. Set "
            "`module.mixed_precision=true` to compute in bfloat16 with float32 weights and reductions."
        )


def build_logger(cfg: DictConfig, folder: Path, sub_folder: str = "") -> Logger:
    """Build the logger, below `folder` or its own folder there if it writes files and no `save_dir` is named.

    Raises:
        ConfigError: If a package that it needs is not installed.
    """
    settings = cfg.logger.copy()
    with open_dict(settings):
        own = settings.pop("folder", "")
        takes_folder = "save_dir" in inspect.signature(find_target(settings._target_, "logger")).parameters
        if OmegaConf.is_missing(settings, "save_dir") or ("save_dir" not in settings and takes_folder):
            settings.save_dir = str(folder / sub_folder / own)
    logger: Logger = build(settings)
    return logger


def build_cold_start(cfg: DictConfig, policy: PolicySource) -> tuple[ColdStartModule, DemonstrationDataModule]:
    """Build the supervised stage.

    Raises:
        ConfigError: If the task has no demonstrations, or a tool of the next stage cannot work here, such as code
            without a sandbox: better now than after the minutes of this stage.
    """
    task: Task = build(cfg.data.task)
    if not isinstance(task, DemonstrationSource):
        raise ConfigError(
            f"`coldstart` needs a task with demonstrations, but {type(task).__name__} has none. Set `coldstart=none`."
        )
    own = cfg.coldstart
    module = ColdStartModule(
        policy,
        build(own.optimizer),
        build(own.scheduler),
        own.max_grad_norm,
        logprob_chunk_size=own.logprob_chunk_size,
        gradient_checkpointing=own.gradient_checkpointing,
    )
    tools = build_tools(cfg.tools)
    try_tools(tools)
    chat_format = build_chat_format(cfg, policy.tokenizer, tools.specs)
    if cfg.data.get("round_trip", True):
        RoundTrip.of(policy, task, chat_format, tools).run()
    datamodule = DemonstrationDataModule(
        task,
        chat_format,
        policy.tokenizer,
        own.batch_size,
        packing=own.packing,
        max_tokens_per_micro_batch=own.max_tokens_per_micro_batch,
    )
    return module, datamodule


def try_tools(tools: BranchingToolRunner) -> None:
    """Start tools and close them again.

    Raises:
        ConfigError: If one cannot work here, such as code without a sandbox.
    """
    run_in_event_loop(_start_and_close(tools))


async def _start_and_close(tools: BranchingToolRunner) -> None:
    await tools.start()
    await tools.close()


def _quoted(error: InstantiationException) -> str:
    """Return the target that an error of Hydra is about."""
    return str(error).partition("'")[2].partition("'")[0]


def _failed(target: str, error: Exception) -> str:
    return f"`{target}` must not fail when it is built, but raised {describe_failure(error)}. Mend it."


def _not_found(error: InstantiationException) -> str:
    """Say which target is not there, and where it stands."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    target = _quoted(error)
    key = next((line.partition(": ")[2] for line in lines if line.startswith("full_key: ")), "")
    reason = " ".join(str(error.__cause__).split())
    return f"`{key}._target_` must be something to import, but {target!r} is not: {reason}".replace("`._", "`_")


def _checked(target: Callable[..., T], *arguments: Any, **settings: Any) -> T:
    """Construct a part; a value that it refuses, or a key that it does not know, is a mistake of the configuration."""
    refuse_strangers(target, settings)
    failures: list[Exception] = []
    with boundary(failures.append):
        return target(*arguments, **settings)
    error = failures[0]
    if isinstance(error, AepoError):
        raise error
    if isinstance(error, ValueError | MisconfigurationException):
        raise ConfigError(str(error)) from error
    if is_own(target):
        raise error
    raise ConfigError(_failed(part_name(target), error)) from error
