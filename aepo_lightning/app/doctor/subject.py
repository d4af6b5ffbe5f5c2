"""What is looked at: a composed configuration and the parts that it describes, each built once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig

from aepo_lightning.app.build import build, build_chat_format, build_data, build_engine, build_tools
from aepo_lightning.app.devices import runs_on_gpus
from aepo_lightning.app.doctor.finding import NothingToLookAt
from aepo_lightning.app.made_of import is_sft
from aepo_lightning.app.plan import Plan, make_plan, plan_input
from aepo_lightning.app.user_parts import with_functions, without_settings_of
from aepo_lightning.contracts.chat_format import ChatFormat
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.contracts.question import Question, Task
from aepo_lightning.contracts.reward import Reward
from aepo_lightning.contracts.tool import BranchingToolRunner
from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.errors import ConfigError
from aepo_lightning.rewards import PaperReward, as_reward
from aepo_lightning.rollout import ScoringSettings
from aepo_lightning.tasks import as_task
from aepo_lightning.tasks.asked import ask_question
from aepo_lightning.training.algorithm import Algorithm
from aepo_lightning.training.datamodule import RolloutDataModule
from aepo_lightning.training.module import AEPOModule

T = TypeVar("T")

TOOLS = "the tools"


@dataclass(slots=True, kw_only=True)
class Subject:
    """A configuration, and its parts as a run would have them.

    Whoever asks for a part first has it built, and gets what goes wrong. Whoever asks for a part that could not be
    built gets `NothingToLookAt`, so that one fault is told once.
    """

    cfg: DictConfig
    folder: Path
    """For what is written while it is looked at."""
    num_questions: int = 2
    """How many are rolled out."""
    is_quick: bool = False
    """Whether the weights are left alone."""
    _parts: dict[str, Any] = field(default_factory=dict)
    _missing: dict[str, str] = field(default_factory=dict)
    """Parts that are not there, and why."""

    def _part(self, name: str, make: Callable[[], T]) -> T:
        if name in self._missing:
            raise NothingToLookAt(self._missing[name])
        if name not in self._parts:
            self.lose(name)
            try:
                self._parts[name] = make()
            except NothingToLookAt as reason:
                self._missing[name] = str(reason)
                raise
            del self._missing[name]
        found: T = self._parts[name]
        return found

    def lose(self, name: str) -> None:
        """Note that a part is not there, because whoever looked at it in another way has said why."""
        self._missing[name] = f"it needs {name}, see above."

    @property
    def plan(self) -> Plan:
        """What a run needs on each device."""
        return self._part("the plan", lambda: make_plan(plan_input(self.cfg)))

    @property
    def policy(self) -> PolicySource:
        """The policy, with its tokenizer and configuration read."""

        def make() -> PolicySource:
            policy: PolicySource = build(self.cfg.model)
            _ = policy.tokenizer, policy.config
            return policy

        return self._part("the model", make)

    @property
    def task(self) -> Task:
        """Where questions come from."""
        return self._part("the questions", lambda: as_task(build(self.cfg.data.task)))

    @property
    def question(self) -> Question:
        """The first of training."""
        return ask_question(self.task, "train", 0)

    @property
    def tools(self) -> BranchingToolRunner:
        """The tools and what calls them."""
        return self._part(TOOLS, lambda: build_tools(self.cfg.tools))

    @property
    def chat_format(self) -> ChatFormat:
        """How calls and results are written."""
        make = lambda: build_chat_format(self.cfg, self.policy.tokenizer, self.tools.specs)  # noqa: E731
        return self._part("the chat format", make)

    @property
    def scoring(self) -> ScoringSettings:
        """How rewards are called."""

        def make() -> ScoringSettings:
            found: ScoringSettings = build(self.cfg.rollout.scoring)
            return found

        return self._part("the settings of scoring", make)

    @property
    def reward(self) -> Reward:
        """What an answer is worth."""

        def make() -> Reward:
            found = build(with_functions(without_settings_of(PaperReward, self.cfg.reward), "reward"))
            return as_reward(found, self.scoring.isolation, self.scoring.deadline_s)

        return self._part("the reward", make)

    @property
    def algorithm(self) -> Algorithm:
        """Budget, branches, advantages and loss."""

        def make() -> Algorithm:
            found: Algorithm = build(with_functions(self.cfg.algorithm, "algorithm"))
            return found

        return self._part("the algorithm", make)

    @property
    def engine(self) -> Engine:
        """What generates, where the weights fit into this process."""

        def make() -> Engine:
            self._refuse_what_does_not_fit()
            return build_engine(self.cfg, self.policy)

        return self._part("the engine", make)

    @property
    def datamodule(self) -> RolloutDataModule:
        """What rolls out, with its sampler."""

        def make() -> RolloutDataModule:
            found = build_data(self.cfg, self.engine, self.algorithm, self.folder)
            found.prepare_sampler(self.policy.tokenizer)
            return found

        return self._part("the rollouts", make)

    @property
    def module(self) -> AEPOModule:
        """What is trained, on its device."""

        def make() -> AEPOModule:
            self._refuse_what_does_not_fit()
            module: AEPOModule = build(self.cfg.module, policy=self.policy, algorithm=self.algorithm)
            module.configure_model()
            return module.to("cuda") if runs_on_gpus(self.cfg) else module

        return self._part("the module", make)

    def _refuse_what_does_not_fit(self) -> None:
        """Say why the weights are left alone.

        Raises:
            NothingToLookAt: If they are.
        """
        cfg = self.cfg
        if self.is_quick:
            raise NothingToLookAt("--quick leaves the weights alone.")
        if runs_on_gpus(cfg) and not torch.cuda.is_available():
            raise NothingToLookAt("there is no GPU here.")
        num_devices = self.plan.settings.num_gpus
        if num_devices > 1:
            raise NothingToLookAt(
                f"the weights are spread over {num_devices} devices; train.py compares engine and trainer after each "
                "publication."
            )
        if self.plan.problems:
            raise NothingToLookAt("the run does not fit here, see memory.")

    @property
    def trees(self) -> list[RolloutTree]:
        """Rollouts of the first questions, with the weights that the module has."""

        def make() -> list[RolloutTree]:
            questions = [ask_question(self.task, "train", index) for index in range(self.num_questions)]
            return self.datamodule.sampler.rollout(questions, int(self.cfg.seed), "doctor")

        return self._part("the rollouts of a few questions", make)

    @property
    def is_untrained(self) -> bool:
        """Whether the policy learns its task in a cold start that is yet to come."""
        return bool(self.cfg.coldstart.num_steps) or is_sft(self.cfg)

    def close(self) -> None:
        """Free what holds processes and memory."""
        engine = self._parts.get("the engine")
        if engine is not None:
            engine.close()


@contextmanager
def examined(cfg: DictConfig, folder: Path, **options: Any) -> Iterator[Subject]:
    """Yield the subject of a configuration, and close it.

    Raises:
        ConfigError: If fewer than one question would be rolled out.
    """
    subject = Subject(cfg=cfg, folder=folder, **options)
    if subject.num_questions < 1:
        raise ConfigError(f"`--questions` must be at least 1, but got {subject.num_questions}.")
    try:
        yield subject
    finally:
        subject.close()
