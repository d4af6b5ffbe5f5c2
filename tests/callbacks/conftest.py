"""A real run that takes a second: one layer of width 16 follows trails of one step."""

import warnings
from dataclasses import dataclass, field
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from typing_extensions import override

from aepo_lightning.advantages import EntropyShaping, GroupZScore
from aepo_lightning.branching import EntropyBalanced, NeverBranch
from aepo_lightning.budgets import FixedBudget, PreMonitoring
from aepo_lightning.chat_formats.tags import TagProtocol
from aepo_lightning.contracts.question import RewardOutput
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.objectives import ClippedSurrogate
from aepo_lightning.policy.publishing.check import PublicationCheck
from aepo_lightning.policy.source import ScratchPolicy
from aepo_lightning.policy.tokenizers import build_word_tokenizer
from aepo_lightning.rollout import RolloutParts, RolloutSampler, RolloutSettings
from aepo_lightning.tasks import TrailTask
from aepo_lightning.tools import CorpusSearch, ToolRuntime
from aepo_lightning.training.datamodule import RolloutDataModule
from aepo_lightning.training.experience import ExperienceBuilder
from aepo_lightning.training.module import AEPOModule

LIGHTNING_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 asks torch 2.13 in the old way
    "Your `IterableDataset` has `__len__` defined",  # true of the validation loader, which has no workers
    "Checkpoint directory .* exists and is not empty",  # a resumed run goes on in its folder
)

ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


class WordCountReward:
    """Differs between the trajectories of an untrained policy, so that there is a gradient."""

    async def __call__(self, sample):
        num_words = len(sample.response_text.split())
        return RewardOutput(reward=num_words / 30, is_correct=num_words % 2 == 0, is_well_formed=num_words > 5)


class SetMetrics(L.Callback):
    """Replaces measured rollout metrics, one value per iteration; the last value stays."""

    def __init__(self, **series):
        self._series = {f"rollout/{name}": values for name, values in series.items()}

    @override
    def on_train_epoch_start(self, trainer, pl_module):
        for name, values in self._series.items():
            trainer.datamodule.metrics[name] = values[min(trainer.current_epoch, len(values) - 1)]


class Experiment:
    """What a TensorBoard writer is to the callbacks."""

    def __init__(self):
        self.texts = []
        self.figures = []

    def add_text(self, tag, text, step):
        self.texts.append((tag, text, step))

    def add_figure(self, tag, figure, step, close):
        assert not close, "pyplot does not know the figure"
        self.figures.append((tag, figure, step))


class RecordingLogger(Logger):
    """Keeps every number that reaches a logger, with its step."""

    def __init__(self):
        super().__init__()
        self.rows = []
        self.experiment = Experiment()

    @property
    def name(self):
        return "recording"

    @property
    def version(self):
        return 0

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    @property
    def names(self):
        return {name for _, row in self.rows for name in row}

    def values(self, name):
        return [row[name] for _, row in self.rows if name in row]


@dataclass(kw_only=True)
class TinyRun:
    """A trainer, a module and data that belong together."""

    trainer: L.Trainer
    module: AEPOModule
    datamodule: RolloutDataModule
    logger: RecordingLogger = field(default_factory=RecordingLogger)

    def fit(self, ckpt_path=None):
        with warnings.catch_warnings():
            for message in LIGHTNING_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            self.trainer.fit(self.module, datamodule=self.datamodule, ckpt_path=ckpt_path)
        return self


def make_datamodule(policy, task, branch_policy, settings):
    protocol = TagProtocol(policy.tokenizer, ("search",))
    parts = RolloutParts(
        engine=TransformersEngine(policy, max_num_seqs=16, max_model_len=64),
        tools=ToolRuntime(tools=(CorpusSearch(),)),
        reward=WordCountReward(),
        protocol=protocol,
        allocator=PreMonitoring(),
        branch_policy=branch_policy,
        settings=settings,
    )
    plain = RolloutParts(
        engine=parts.engine,
        tools=parts.tools,
        reward=parts.reward,
        protocol=protocol,
        allocator=FixedBudget(num_root_chains=4),
        branch_policy=NeverBranch(),
        settings=settings,
    )
    experience = ExperienceBuilder(
        advantage_estimator=GroupZScore(),
        shaping=EntropyShaping(),
        questions_per_step=1,
        max_tokens_per_micro_batch=256,
    )
    return RolloutDataModule(
        task,
        RolloutSampler(parts),
        RolloutSampler(plain),
        experience,
        questions_per_iteration=2,
        num_val_questions=1,
        publication_check=PublicationCheck(),
        show_progress=False,
    )


@pytest.fixture
def make_run(tmp_path):
    """Build a run of `max_epochs` iterations of two optimiser steps each, validated after each."""

    def make(callbacks=(), max_epochs=1, branch_policy=None, logger=None, has_checkpoints=True, **options):
        task = TrailTask(num_places=4, num_steps=1)
        policy = ScratchPolicy(tokenizer=build_word_tokenizer(task.words), architecture=ARCHITECTURE)
        settings = RolloutSettings(budget=4, max_response_tokens=30, max_tool_calls=3)
        rule = branch_policy or EntropyBalanced(alpha=1.0, penalty_per_step=0.1)
        recording = RecordingLogger()
        saver = [ModelCheckpoint(tmp_path / "checkpoints", save_last=True, save_on_train_epoch_end=True)]
        saver = saver if has_checkpoints else []
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=max_epochs,
            callbacks=[*callbacks, *saver],
            enable_checkpointing=has_checkpoints,
            logger=logger or recording,
            default_root_dir=tmp_path,
            log_every_n_steps=1,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            **{"enable_progress_bar": False} | options,
        )
        module = AEPOModule(policy, ClippedSurrogate(preserve_high=1.0), partial(torch.optim.AdamW, lr=1e-2))
        datamodule = make_datamodule(policy, task, rule, settings)
        return TinyRun(trainer=trainer, module=module, datamodule=datamodule, logger=recording)

    return make


@pytest.fixture
def set_metrics():
    return SetMetrics
