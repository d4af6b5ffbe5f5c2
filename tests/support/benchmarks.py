"""A benchmark of a few questions of the trail task, and who looks at its answers."""

from dataclasses import dataclass, field, replace

from aepo_lightning.contracts.checker import Verdict
from aepo_lightning.contracts.question import Message
from aepo_lightning.evaluation.benchmark import Benchmark, BenchmarkQuestions
from aepo_lightning.evaluation.protocol import EvaluationProtocol
from aepo_lightning.rollout import SamplingSettings
from tests.support.training import TASK


@dataclass(frozen=True, kw_only=True)
class Riddles:
    """Questions with documents of their own."""

    num_questions: int = 3
    levels: tuple = ("easy", "hard")
    words: str = ""
    """Are asked instead of the task's."""

    def read(self, name):
        found = [TASK.question("val", index) for index in range(self.num_questions)]
        questions = tuple(
            replace(
                each,
                messages=self.messages(each),
                metadata={"benchmark": name, "level": self.levels[index % len(self.levels)]},
            )
            for index, each in enumerate(found)
        )
        return BenchmarkQuestions(questions=questions, origin="here")

    def messages(self, question):
        return (Message(role="user", content=self.words),) if self.words else question.messages


@dataclass(frozen=True, kw_only=True)
class Counted(Riddles):
    """Says how often it was read."""

    reads: list = field(default_factory=list)

    def read(self, name):
        self.reads.append(name)
        return super().read(name)


@dataclass(frozen=True, kw_only=True)
class SameWords:
    """The rule of riddles."""

    accepts_empty: bool = False

    async def __call__(self, claim):
        is_correct = claim.answer in claim.golds or (self.accepts_empty and not claim.answer)
        return Verdict(score=float(is_correct), is_correct=is_correct)


@dataclass
class Asked:
    """A judge that counts what it is asked, and agrees with everything."""

    rule: object = None
    claims: list = field(default_factory=list)

    async def __call__(self, claim):
        self.claims.append(claim)
        return Verdict(score=1.0, is_correct=True)


def riddles(**changes):
    """A benchmark that offers search."""
    usual = {
        "name": "riddles",
        "title": "Riddles",
        "source": Riddles(),
        "checker": SameWords(),
        "protocol": protocol(),
        "levels": ("easy", "hard"),
        "judge": "asked",
    }
    return Benchmark(**(usual | changes))


def protocol(**changes):
    sampling = SamplingSettings(max_response_tokens=24, max_tool_calls=3, on_call_limit="tell")
    usual = {"prompt": "search", "sampling": sampling, "num_samples": 2, "max_model_len": 64, "extraction": "boxed"}
    return EvaluationProtocol(**(usual | changes))


CONFIG = """
_target_: aepo_lightning.evaluation.benchmark.Benchmark
name: riddles
title: Riddles
source:
  _target_: tests.support.benchmarks.Riddles
checker:
  _target_: tests.support.benchmarks.SameWords
judge: asked
levels: [easy, hard]
protocol:
  _target_: aepo_lightning.evaluation.protocol.EvaluationProtocol
  prompt: search
  num_samples: 2
  max_model_len: 64
  extraction: boxed
  sampling:
    _target_: aepo_lightning.rollout.SamplingSettings
    max_response_tokens: 24
    max_tool_calls: 3
    on_call_limit: tell
"""
"""The same as a file of `conf/benchmark/`."""


def write_config(folder):
    """Write a folder for `--config-dir` with the benchmark in it."""
    (folder / "benchmark").mkdir(parents=True)
    (folder / "benchmark" / "riddles.yaml").write_text(CONFIG)
    return folder
