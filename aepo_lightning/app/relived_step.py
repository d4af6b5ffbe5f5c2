"""An optimiser step of a finished run, made again from what the run has kept.

Trees come from the journal, weights from beside them or from a checkpoint. Where other steps of the iteration went
before, they are taken again, with the state of the optimizer from the checkpoint that the iteration began with.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from aepo_lightning.app.build import build
from aepo_lightning.app.kept_weights import find_weights
from aepo_lightning.app.logged_scalars import read_scalars
from aepo_lightning.app.saved_run import first_policy, load_config, training_rollouts
from aepo_lightning.app.threads import set_threads
from aepo_lightning.app.user_parts import with_functions
from aepo_lightning.checkpoints import find_checkpoints, verify_checkpoint
from aepo_lightning.contracts.batch import Minibatch
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.policy.checked_weights import copy_weights
from aepo_lightning.policy.sharding.fsdp2 import clip_gradients
from aepo_lightning.rollout import RolloutJournal
from aepo_lightning.training.module import AEPOModule
from aepo_lightning.training.optimizers import Built, build_both
from aepo_lightning.training.rollout_parts import experience_builder

SECTIONS = ("model", "algorithm", "experience", "module")
"""What is built of a configuration."""
_LOSS, _COEFFICIENT = "train/loss", "train/entropy_coefficient"


@dataclass(frozen=True, slots=True, kw_only=True)
class RelivedStep:
    """The state before an optimiser step, and its data."""

    module: AEPOModule
    """With the weights that the step is about to change."""
    policy: PolicySource
    minibatch: Minibatch
    trees: Sequence[RolloutTree]
    """Of the iteration; `group_index` of the batches counts them."""
    iteration: int
    step: int
    """Optimiser steps before this one, in the whole run."""
    logged_loss: float | None
    """As the run logged it; None where no file of TensorBoard has it."""


def relive(folder: Path, question_id: str, iteration: int | None = None, allowed: Sequence[str] = ()) -> RelivedStep:
    """Make the step again that first trained on a question.

    Args:
        folder: Of the run.
        question_id: Of a saved tree.
        iteration: In which it was asked. Default: the first.
        allowed: What the configuration may call beside the parts of this library.

    Raises:
        ConfigError: If the run has no such tree, or has not kept what the step was made of.
        DataError: If a file is damaged.
    """
    cfg = _config(folder, allowed)
    iteration = _iteration_of(folder, question_id) if iteration is None else iteration
    trees = _trees(folder, iteration, cfg.experience.questions_per_step)
    group = next((place for place, tree in enumerate(trees) if tree.question.question_id == question_id), None)
    if group is None:
        raise ConfigError(f"`--question` must be asked in iteration {iteration}, but {question_id!r} was not.")
    relived = _Iteration.open(cfg, folder, iteration, trees)
    place = _place_of(relived.minibatches, group, question_id)
    return next(islice(relived.steps(), place, None))


def relive_iteration(folder: Path, iteration: int, allowed: Sequence[str] = ()) -> Iterator[RelivedStep]:
    """Make the steps of an iteration again, one after the other; of several passes, the first.

    Args:
        folder: Of the run.
        iteration: Which.
        allowed: What the configuration may call beside the parts of this library.

    Yields:
        The state before each step. It is over when the next one is asked for.

    Raises:
        ConfigError: If the run has no such trees, or has not kept what the steps were made of. What the further ones
            need is looked for after the first.
        DataError: If a file is damaged.
    """
    cfg = _config(folder, allowed)
    trees = _trees(folder, iteration, cfg.experience.questions_per_step)
    yield from _Iteration.open(cfg, folder, iteration, trees).steps()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Iteration:
    """The weights that an iteration began with, and the data of its steps."""

    cfg: DictConfig
    folder: Path
    module: AEPOModule
    policy: PolicySource
    trees: Sequence[RolloutTree]
    minibatches: Sequence[Minibatch]
    """Of the first pass."""
    iteration: int
    losses: Mapping[int, float]
    """As they were logged, by step."""

    @classmethod
    def open(cls, cfg: DictConfig, folder: Path, iteration: int, trees: Sequence[RolloutTree]) -> "_Iteration":
        """Read weights and build the data of the steps."""
        version = trees[0].weights_version
        policy, algorithm = first_policy(cfg, folder), build(with_functions(cfg.algorithm, "algorithm"))
        module: AEPOModule = build(cfg.module, policy=policy, algorithm=algorithm)
        module.configure_model()
        copy_weights(module.trained_network().model, find_weights(folder, policy, None, version).items(), DataError)
        scalars = read_scalars(folder, (_LOSS, _COEFFICIENT))
        if known := [value for step, value in sorted(scalars.get(_COEFFICIENT, {}).items()) if step <= version]:
            module.entropy_coefficient = known[-1]
        minibatches = _minibatches(cfg, module, policy, trees)
        return cls(
            cfg=cfg,
            folder=folder,
            module=module,
            policy=policy,
            trees=trees,
            minibatches=minibatches[: len(minibatches) // cfg.experience.num_epochs],
            iteration=iteration,
            losses=scalars.get(_LOSS, {}),
        )

    def steps(self) -> Iterator[RelivedStep]:
        """Yield the state before each step; it is taken when the next one is asked for."""
        built: Built | None = None
        for place, minibatch in enumerate(self.minibatches):
            if place:
                built = built or self._optimizer()
                self._take(built, self.minibatches[place - 1])
            step = self.trees[0].weights_version + place
            yield RelivedStep(
                module=self.module,
                policy=self.policy,
                minibatch=minibatch,
                trees=self.trees,
                iteration=self.iteration,
                step=step,
                logged_loss=self.losses.get(step),
            )

    def _optimizer(self) -> Built:
        """Return optimizer and scheduler as the iteration began with them."""
        settings, version = self.cfg.module, self.trees[0].weights_version
        scheduler = build(settings.scheduler) if settings.get("scheduler") is not None else None
        built = build_both(build(settings.optimizer), scheduler, self.module.trained_network())
        if version:
            state = _state_of(self.folder, version)
            built.optimizer.load_state_dict(state["optimizer_states"][0])
            if built.scheduler is not None:
                built.scheduler.load_state_dict(state["lr_schedulers"][0])
        return built

    def _take(self, built: Built, minibatch: Minibatch) -> None:
        """Take an optimiser step as the module does in training."""
        network = self.module.trained_network()
        for batch in minibatch.micro_batches:
            loss, _ = self.module.policy_loss(network, batch, minibatch)
            loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients(network, self.cfg.module.max_grad_norm)
        built.optimizer.step()
        built.optimizer.zero_grad()
        if built.scheduler is not None:
            built.scheduler.step()


def _config(folder: Path, allowed: Sequence[str]) -> DictConfig:
    cfg = load_config(folder, allowed, SECTIONS)
    _refuse(cfg)
    set_threads(cfg.num_threads)
    return cfg


def _refuse(cfg: DictConfig) -> None:
    for key, why in (
        ("module.adapter", "the weights are kept with the adapter merged into them"),
        ("algorithm.dynamic_sampling", "which groups were trained on is not on record"),
    ):
        if OmegaConf.select(cfg, key) is not None:
            raise ConfigError(f"`{key}` must be null for a step to be made again: {why}.")
    if cfg.data.get("overlap"):
        raise ConfigError("`data.overlap` must be false for a step to be made again: its trees are of older weights.")


def _iteration_of(folder: Path, question_id: str) -> int:
    journal = RolloutJournal(folder / "rollouts")
    shown: list[str] = []
    for name in training_rollouts(folder):
        for tree in journal.read(name):
            if tree.question.question_id == question_id:
                return int(name.split("-")[1])
            shown.append(tree.question.question_id)
    raise ConfigError(
        f"`--question` must be the id of a saved tree, but {folder / 'rollouts'} has none of {question_id!r}. The "
        f"first are {', '.join(map(repr, shown[:5])) or 'none'}."
    )


def _trees(folder: Path, iteration: int, questions_per_step: int) -> list[RolloutTree]:
    """Return the trees of an iteration in the order of its steps: each takes its share from every rank."""
    journal, names = RolloutJournal(folder / "rollouts"), training_rollouts(folder, iteration)
    if not names:
        raise ConfigError(f"`--iteration` must have trees in {folder / 'rollouts'}, but {iteration} has none.")
    if any(journal.steps_path(name).exists() for name in names):
        raise ConfigError(
            f"`--iteration` must be one whose rollout is over, but {iteration} was cut off: no step followed."
        )
    by_rank = [list(journal.read(name)) for name in names]
    own = max(1, questions_per_step // len(by_rank))
    starts = range(0, max(map(len, by_rank)), own)
    return [tree for start in starts for trees in by_rank for tree in trees[start : start + own]]


def _minibatches(
    cfg: DictConfig, module: AEPOModule, policy: PolicySource, trees: Sequence[RolloutTree]
) -> list[Minibatch]:
    limit = cfg.rollout.sampling.max_response_tokens
    pad = policy.tokenizer.pad_token_id
    builder = experience_builder(module.algorithm, build(cfg.experience), pad, limit)
    reference = module.score_reference if module.uses_reference else None
    with module.evaluating():
        return builder.build(trees, module.score, reference)


def _place_of(minibatches: Sequence[Minibatch], group: int, question_id: str) -> int:
    for place, minibatch in enumerate(minibatches):
        if any(bool((batch.group_index == group).any()) for batch in minibatch.micro_batches):
            return place
    raise ConfigError(f"No step trains on question {question_id!r}: its trajectories were left out. Name another one.")


def _state_of(folder: Path, version: int) -> dict[str, Any]:
    """Return the checkpoint after so many optimiser steps.

    Raises:
        ConfigError: If it was not kept.
    """
    steps = {path: verify_checkpoint(path).global_step for path in find_checkpoints(folder / "checkpoints")}
    found = next((path for path, step in steps.items() if step == version and path.is_file()), None)
    if found is None:
        raise ConfigError(
            f"The state of the optimizer after {version} steps must have been kept, because other steps of the "
            f"iteration come before the one that is asked for, but {folder} has checkpoints after "
            f"{sorted(steps.values())} only. Name a question of the first step of an iteration, or run with "
            "callbacks.checkpoint.every_n_epochs=1 callbacks.checkpoint.keep=-1."
        )
    state: dict[str, Any] = torch.load(found, map_location="cpu", weights_only=True)
    return state
