"""The quickstart policy and its parts, for benchmarks that roll it out."""

import logging
import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import lightning as L
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from transformers.utils import logging as transformers_logging

from aepo_lightning.app.build import build, build_cold_start
from aepo_lightning.chat_formats.tags import TagFormat
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.contracts.question import Demonstration, DemonstrationSource, SegmentSource
from aepo_lightning.contracts.tool import ToolRunner
from aepo_lightning.policy.source import PretrainedPolicy
from aepo_lightning.rollout import RolloutParts
from aepo_lightning.training.algorithm import Algorithm
from aepo_lightning.training.demonstrations import DemonstrationDataModule


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtfulDemonstrations:
    """Demonstrations in which every turn of the policy begins with a thought of random length.

    The thought is one filler word, repeated; how often is geometric, the distribution of a policy that ends its
    thought with the same probability at every token.
    """

    source: DemonstrationSource
    mean_length: float

    def demonstration(self, index: int) -> Demonstration:
        """Return demonstration `index` with thoughts."""
        random = Random(f"thoughts/{index}")
        demonstration = self.source.demonstration(index)
        turns = []
        for turn in demonstration.turns:
            if turn.source is SegmentSource.POLICY:
                call = turn.text.split("</think> ")[-1]
                turn = replace(turn, text=f"<think> {'go ' * self._length(random)}</think> {call}")
            turns.append(turn)
        return replace(demonstration, turns=tuple(turns))

    def _length(self, random: Random) -> int:
        return 1 + int(random.expovariate(1.0) / -math.log1p(-1.0 / self.mean_length))


def quickstart_config(*overrides: str) -> DictConfig:
    """Compose the configuration of `python train.py`."""
    with initialize_config_module("aepo_lightning.conf", version_base="1.3"):
        return compose("train", overrides=list(overrides))


def quickstart_policy(cfg: DictConfig, folder: str | None, scratch: Path, thought: float = 0.0) -> PolicySource:
    """Return the policy in `folder`, or a fresh one after the quickstart's cold start.

    Args:
        cfg: Of the quickstart.
        folder: A Hugging Face folder, such as `coldstart` in a run folder. None makes a policy, in some minutes.
        scratch: Where a new policy is kept.
        thought: Mean length in tokens of the thought with which a new policy begins every turn; 0 leaves the
            demonstrations as they are.
    """
    if folder is None:
        folder = str(scratch / "coldstart")
        _cold_start(cfg, folder, thought)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return PretrainedPolicy(name_or_path=folder)


def _cold_start(cfg: DictConfig, folder: str, thought: float) -> None:
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    L.seed_everything(cfg.seed, verbose=False)
    policy: PolicySource = build(cfg.model)
    module, datamodule = build_cold_start(cfg, policy)
    if thought:
        source = ThoughtfulDemonstrations(source=build(cfg.data.task), mean_length=thought)
        chat_format = TagFormat(policy.tokenizer, ("search",))
        datamodule = DemonstrationDataModule(source, chat_format, policy.tokenizer, cfg.coldstart.batch_size)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=cfg.coldstart.num_steps,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, datamodule=datamodule)
    module.network.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def quickstart_parts(cfg: DictConfig, engine: Engine, tools: ToolRunner, chat_format: TagFormat) -> RolloutParts:
    """Return what the quickstart rolls out with, around another engine and other tools."""
    algorithm: Algorithm = build(cfg.algorithm)
    return RolloutParts(
        engine=engine,
        tools=tools,
        reward=build(cfg.reward),
        chat_format=chat_format,
        allocator=algorithm.allocator,
        branch_policy=algorithm.branch_policy,
        settings=algorithm.rollout_settings(build(cfg.rollout.sampling)),
    )
