"""From a finished trajectory to what is kept of it: its text, what it took, its answer, and what was found."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from aepo_lightning.contracts.blame import describe_failure, part_name
from aepo_lightning.contracts.chat_format import ChatFormat
from aepo_lightning.contracts.checker import AnswerChecker, Claim, Outcome, Verdict, choices_of
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.reward import RewardInput, RewardOutput
from aepo_lightning.contracts.tool import ToolStatus
from aepo_lightning.contracts.tree import Leaf, RolloutTree
from aepo_lightning.errors import boundary
from aepo_lightning.evaluation.results import TrajectoryResult
from aepo_lightning.rollout.steps import opening_of


@dataclass(frozen=True, slots=True)
class Unjudged:
    """The reward of rollouts whose trajectories are judged afterwards, when they do not hold up generation."""

    is_immediate = True

    async def __call__(self, sample: RewardInput) -> RewardOutput:
        """Return 0 for any trajectory."""
        del sample
        return RewardOutput(reward=0.0, is_correct=False, is_well_formed=True)


@runtime_checkable
class TrajectoryJudge(Protocol):
    """Says what is kept of a trajectory. It does not fail: what it cannot judge has a verdict that is not scored."""

    async def __call__(self, tree: RolloutTree, leaf: Leaf) -> TrajectoryResult:
        """Return the result of one trajectory of a finished tree."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedAnswers:
    """Reads the answer from the text of a response and has it checked."""

    benchmark: str
    chat_format: ChatFormat
    read_answer: Callable[[str], str]
    """From the text of a response to its answer; empty if it has none."""
    checker: AnswerChecker
    """Gives the verdict."""
    further: Mapping[str, AnswerChecker] = field(default_factory=dict)
    """Rules whose scores are kept beside it, by name."""

    async def __call__(self, tree: RolloutTree, leaf: Leaf) -> TrajectoryResult:
        """Return the result of one trajectory of a finished tree."""
        text = response_text(tree, leaf, self.chat_format)
        facts = trajectory_facts(tree, leaf) | {"benchmark": self.benchmark, "response_text": text}
        answer = self.read_answer(text)
        claim = Claim(
            question=facts["question"],
            golds=facts["golds"],
            answer=answer,
            question_id=facts["question_id"],
            choices=facts["choices"],
        )
        scores = {}
        for name, rule in self.further.items():
            verdict = await checked(rule, claim)
            if verdict.is_scored:
                scores[name] = verdict.score
        return TrajectoryResult(answer=answer, verdict=await checked(self.checker, claim), scores=scores, **facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardedAnswers:
    """Takes the reward that a trajectory had in its rollout, so that numbers are those of training."""

    benchmark: str
    chat_format: ChatFormat

    async def __call__(self, tree: RolloutTree, leaf: Leaf) -> TrajectoryResult:
        """Return the result of one trajectory of a finished tree."""
        facts = trajectory_facts(tree, leaf)
        facts |= {"benchmark": self.benchmark, "response_text": response_text(tree, leaf, self.chat_format)}
        reward = leaf.reward
        if reward is None or not reward.is_scored:
            reason = "The reward failed." if reward is None or not reward.reason else reward.reason
            verdict, scores = Verdict(outcome=Outcome.UNSCORED, reason=reason), {}
        else:
            score = min(max(reward.f1, float(reward.is_correct), 0.0), 1.0)
            verdict = Verdict(score=score, is_correct=reward.is_correct, reason=reward.reason)
            scores = {"reward": reward.reward, "f1": reward.f1, "is_well_formed": float(reward.is_well_formed)}
            scores |= {f"reward_{name}": value for name, value in reward.terms.items()}
        answer = "" if reward is None else reward.answer
        return TrajectoryResult(answer=answer, verdict=verdict, scores=scores, **facts)


async def checked(checker: AnswerChecker, claim: Claim) -> Verdict:
    """Return what a checker says of a claim. One that fails, against its contract, is named in a verdict."""
    failures: list[Exception] = []
    with boundary(failures.append):
        return await checker(claim)
    problem = f"The checker `{part_name(checker)}` must not fail, but raised {describe_failure(failures[0])}."
    return Verdict(outcome=Outcome.UNSCORED, reason=problem)


def response_text(tree: RolloutTree, leaf: Leaf, chat_format: ChatFormat) -> str:
    """Return everything after the prompt, tool results included, as a reward sees it."""
    prompt_length = tree.segments[0].end
    return opening_of(chat_format) + chat_format.decode(tree.token_ids(leaf.segment_id)[prompt_length:])


def trajectory_facts(tree: RolloutTree, leaf: Leaf) -> dict[str, Any]:
    """Return what a trajectory was asked and what it took, as fields of `TrajectoryResult`."""
    question, path = tree.question, tree.path(leaf.segment_id)
    results = [(each.tool_call, each.tool_result) for each in path if each.tool_result is not None]
    failed = Counter(str(result.status) for _, result in results if result.status is not ToolStatus.OK)
    return {
        "question_id": question.question_id,
        "sample": sample_number(leaf),
        "question": question.messages[-1].content,
        "golds": tuple(question.answers),
        "choices": choices_of(question),
        "level": str(question.metadata.get("level", "")),
        "stop_reason": leaf.stop_reason,
        "num_calls": dict(Counter(call.tool for call, _ in results if call is not None)),
        "num_failed_calls": dict(failed),
        "num_outages": sum(result.is_outage for _, result in results),
        "num_generated_tokens": sum(len(each.token_ids) for each in path if each.source is SegmentSource.POLICY),
        "num_result_tokens": sum(len(each.token_ids) for each in path if each.source is SegmentSource.TOOL),
        "seed": tree.seed,
    }


def sample_number(leaf: Leaf) -> int:
    """Return which of the independent samples of its question a trajectory is, from 0."""
    return int(leaf.seed_path[1])
