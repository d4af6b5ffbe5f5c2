"""Builders for tests of the update phase: trees written by hand, random trees, and runs that take a second."""

import math
import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from aepo_lightning.advantages import EntropyShaping, GroupZScore
from aepo_lightning.branching import EntropyBalanced
from aepo_lightning.budgets import PreMonitoring
from aepo_lightning.chat_formats.tags import TagFormat
from aepo_lightning.contracts.batch import Minibatch, TrajectoryBatch
from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import Question, SegmentSource
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.contracts.tree import Leaf, LeafOrigin, RolloutTree
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.objectives import ClippedSurrogate
from aepo_lightning.policy.publishing.check import PublicationCheck
from aepo_lightning.policy.source import ScratchPolicy
from aepo_lightning.policy.tokenizers import build_word_tokenizer
from aepo_lightning.rollout import SamplingSettings
from aepo_lightning.rollout.turn_entropy import TurnEntropy
from aepo_lightning.tasks import TrailTask
from aepo_lightning.tools import DocumentSearch, ToolRuntime
from aepo_lightning.training.algorithm import Algorithm
from aepo_lightning.training.datamodule import RolloutDataModule
from aepo_lightning.training.experience import ExperienceBuilder, ExperienceSettings
from aepo_lightning.training.module import AEPOModule
from tests.support.recording import RecordingLogger

TASK = TrailTask(num_places=4, num_steps=1)
LIGHTNING_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 asks torch 2.13 in the old way
    "You defined a `validation_step` but have no `val_dataloader`",  # where the data are fixed optimiser steps
    "Checkpoint directory .* exists and is not empty",  # a resumed run goes on in its folder
)


# Trees by hand ------------------------------------------------------------------------------------------------------


def make_tree(paths, rewards, question_id="q", prompt=(3, 4)) -> RolloutTree:
    """A tree without branches. A path is a list of (source, tokens); sampled tokens get log-prob -token/10, entropy
    token/100, so that every number tells where it comes from."""
    question = Question(question_id=question_id, messages=(), answers=())
    tree = RolloutTree(question=question, global_budget=len(paths))
    tree.add(None, SegmentSource.PROMPT, list(prompt))
    for index, (path, reward) in enumerate(zip(paths, rewards, strict=True)):
        parent = 0
        for source, tokens in path:
            numbers = {}
            if source is SegmentSource.POLICY:
                numbers = {"logprobs": [-t / 10 for t in tokens], "entropies": [t / 100 for t in tokens]}
            parent = tree.add(parent, source, list(tokens), **numbers).segment_id
        tree.leaves.append(make_leaf(parent, reward, index))
    return tree


def make_leaf(segment_id, reward, index=0) -> Leaf:
    return Leaf(
        segment_id=segment_id,
        origin=LeafOrigin.ROOT,
        stop_reason=StopReason.EOS,
        seed_path=("r", index),
        reward=RewardOutput(reward=reward, is_correct=reward > 0, is_well_formed=True),
    )


def policy_turn(*tokens):
    return (SegmentSource.POLICY, tokens)


def tool_turn(*tokens):
    return (SegmentSource.TOOL, tokens)


def random_trees(num_trees, seed=0, group=4, vocab=20, longest=9):
    """Trees of random tokens and lengths, with tool results and rewards that differ."""
    random = Random(seed)

    def tokens():
        return [random.randrange(3, vocab) for _ in range(random.randint(1, longest))]

    trees = []
    for number in range(num_trees):
        paths = []
        for _ in range(group):
            path = [policy_turn(*tokens())]
            for _ in range(random.randint(0, 2)):
                path += [tool_turn(*tokens()), policy_turn(*tokens())]
            paths.append(path)
        rewards = [random.random() for _ in paths]
        trees.append(make_tree(paths, rewards, f"q{number}", prompt=tokens()))
    return trees


def at_temperature(trees, temperature):
    """The same trees, sampled at a temperature."""
    for tree in trees:
        tree.temperature = temperature
    return trees


# Models and modules -------------------------------------------------------------------------------------------------


def small_policy(seed=0, **fields) -> ScratchPolicy:
    """Two layers of width 16 over the vocabulary of the trail task, with uneven distributions."""
    architecture = {
        "model_type": "qwen3",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }
    tokenizer = build_word_tokenizer(TASK.words)
    return ScratchPolicy(tokenizer=tokenizer, architecture=architecture | fields, seed=seed)


def make_algorithm(**changes) -> Algorithm:
    """EBPO's loss without entropy shaping: what a test of the update says beside it is all there is."""
    return Algorithm(**({"name": "test", "objective": ClippedSurrogate(preserve_high=1.0)} | changes))


def make_module(policy=None, objective=None, optimizer=None, algorithm=None, **options) -> AEPOModule:
    """A module; parts of its algorithm may stand among the options."""
    names = ("aggregation", "kl_penalty", "advantage_estimator", "shaping")
    parts = {name: options.pop(name) for name in names if name in options}
    parts |= {} if objective is None else {"objective": objective}
    return AEPOModule(
        policy or small_policy(),
        algorithm or make_algorithm(**parts),
        optimizer=optimizer or partial(torch.optim.SGD, lr=0.5),
        **options,
    )


def built_module(**options) -> AEPOModule:
    """A module whose network exists, for tests that need no trainer."""
    module = make_module(**options)
    module.configure_model()
    return module


@torch.no_grad()
def perturb(network, scale=0.05, seed=1):
    """Move every weight a little, so that the policy is no longer the one that sampled."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter += scale * torch.randn(parameter.shape, generator=generator)


def experience_builder(**options) -> ExperienceBuilder:
    """An `ExperienceBuilder`; its settings may stand among the options."""
    names = ("questions_per_step", "num_epochs", "max_tokens_per_micro_batch", "packing", "old_logprobs")
    settings = ExperienceSettings(**{name: options.pop(name) for name in names if name in options})
    return ExperienceBuilder(**({"advantage_estimator": GroupZScore(), "settings": settings} | options))


def build_experience(module, trees, **options) -> list[Minibatch]:
    options = {"questions_per_step": len(trees)} | options
    reference = module.score_reference if module.uses_reference else None
    return experience_builder(**options).build(trees, module.score, reference)


def empty_batch(width=5) -> TrajectoryBatch:
    """What a rank without work gets: one row of padding."""
    zeros = torch.zeros(1, width - 1)
    return TrajectoryBatch(
        input_ids=torch.zeros(1, width, dtype=torch.long),
        lengths=torch.tensor([0]),
        response_mask=zeros.bool(),
        sampler_logprobs=zeros,
        sampler_entropies=zeros,
        group_index=torch.tensor([-1]),
        rewards=torch.tensor([0.0]),
        sequence_advantages=torch.tensor([0.0]),
        old_logprobs=zeros,
        old_entropies=zeros,
        ref_logprobs=zeros,
        advantages=zeros,
    )


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def relative_l2(found, expected) -> float:
    return float((found - expected).norm() / expected.norm())


# Runs ---------------------------------------------------------------------------------------------------------------


class WordCountReward:
    """Differs between the trajectories of an untrained policy, so that there is a gradient."""

    async def __call__(self, sample):
        num_words = len(sample.response_text.split())
        return RewardOutput(
            reward=math.sin(num_words), is_correct=num_words % 2 == 0, is_well_formed=num_words > 5, f1=num_words / 30
        )


class Steps:
    """A loader: Lightning would take a list for several loaders."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        return iter(self.items)


class FixedData(LightningDataModule):
    """The same optimiser steps in every epoch."""

    def __init__(self, minibatches):
        super().__init__()
        self.minibatches = minibatches
        self.metrics = {}

    def train_dataloader(self):
        return Steps(self.minibatches)


class RecordingEngine(TransformersEngine):
    """Remembers the versions of the weights that were published."""

    def sleep(self):
        """Nothing to free."""

    def load_weights(self, weights, version):
        self.versions = [*getattr(self, "versions", []), version]
        super().load_weights(weights, version)


def make_trainer(folder, **options) -> Trainer:
    """A silent trainer on one CPU."""
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "log_every_n_steps": 1,
        "enable_checkpointing": any(isinstance(each, Checkpoint) for each in options.get("callbacks", ())),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "default_root_dir": folder,
    }
    return Trainer(**{**defaults, **options})


def rollout_algorithm(branch_policy=None, **changes) -> Algorithm:
    """An algorithm whose rollouts branch, with four short trajectories a question."""
    parts = {
        "budget": 4,
        "allocator": PreMonitoring(),
        "branch_policy": branch_policy or EntropyBalanced(alpha=0.6, penalty_per_step=0.1),
        "shaping": EntropyShaping(),
        "turn_entropy": TurnEntropy(num_tokens=3),
    }
    return make_algorithm(**(parts | changes))


def make_datamodule(policy, engine=None, experience=None, branch_policy=None, algorithm=None, **options):
    """Data of the trail task. `experience` is an `ExperienceBuilder`, whose parts go where they belong."""
    builder = experience or experience_builder(
        shaping=EntropyShaping(), questions_per_step=2, max_tokens_per_micro_batch=96
    )
    parts = ("advantage_estimator", "shaping", "drop_zero_variance_groups")
    chosen = {name: getattr(builder, name) for name in parts}
    defaults = {
        "tools": ToolRuntime(tools=(DocumentSearch(),)),
        "reward": WordCountReward(),
        "chat_format": TagFormat(policy.tokenizer, ("search",)),
        "sampling": SamplingSettings(max_response_tokens=24, max_tool_calls=3),
        "experience": builder.settings,
        "questions_per_iteration": 2,
        "num_val_questions": 3,
        "val_chunk_size": 2,
        "publication_check": PublicationCheck(max_logprob_gap=1e-4, max_entropy_gap=1e-4),
        "show_progress": False,
    }
    engine = engine or RecordingEngine(policy, max_num_seqs=16, max_model_len=64)
    algorithm = algorithm or rollout_algorithm(branch_policy, **chosen)
    datamodule = RolloutDataModule(TASK, engine, algorithm, **(defaults | options))
    datamodule.prepare_sampler(policy.tokenizer)
    return datamodule


@dataclass(kw_only=True)
class Run:
    """A trainer, a module and data that belong together."""

    trainer: Trainer
    module: AEPOModule
    datamodule: LightningDataModule
    logger: RecordingLogger = field(default_factory=RecordingLogger)

    @property
    def network(self):
        return self.module.network

    def fit(self, ckpt_path=None):
        return self._quietly(self.trainer.fit, ckpt_path=ckpt_path)

    def validate(self):
        return self._quietly(self.trainer.validate, verbose=False)

    def _quietly(self, method, **options):
        with warnings.catch_warnings():
            for message in LIGHTNING_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            method(self.module, datamodule=self.datamodule, **options)
        return self


def share_algorithm(module, datamodule):
    """Give module and data the loss of the one and the rollouts of the other, as one value."""
    own = module.algorithm
    shared = replace(
        datamodule.algorithm, objective=own.objective, aggregation=own.aggregation, kl_penalty=own.kl_penalty
    )
    module.algorithm = datamodule.algorithm = shared


def make_run(folder, module=None, datamodule=None, **options) -> Run:
    """A run on fresh rollouts, unless `datamodule` says otherwise. Options are the trainer's."""
    module = module or make_module(optimizer=partial(torch.optim.AdamW, lr=1e-2))
    logger = RecordingLogger()
    datamodule = datamodule or make_datamodule(module.policy)
    if isinstance(datamodule, RolloutDataModule):
        share_algorithm(module, datamodule)
    trainer = make_trainer(folder, **{"logger": logger} | options)
    return Run(trainer=trainer, module=module, datamodule=datamodule, logger=logger)
