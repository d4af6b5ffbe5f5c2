"""Questions and answers: what is asked, whether a perfect answer comes back whole, and what the reward tells apart."""

from collections.abc import Iterator, Sequence

from aepo_lightning.app.doctor.finding import Finding, passed, skipped, warned
from aepo_lightning.app.doctor.subject import Subject
from aepo_lightning.branching import EntropyBalanced, NeverBranch
from aepo_lightning.contracts.branching import BranchContext, BranchPolicy
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.reward import RewardInput, RewardOutput
from aepo_lightning.event_loop import run_in_event_loop
from aepo_lightning.rollout import Independent
from aepo_lightning.rollout.scoring import score
from aepo_lightning.training.round_trip import RoundTrip

_WRONG = "no such thing"
_STEPS = 20
"""Of a grid over all that entropies, whose unit is ln V, and draws can be."""


def look_at_model(subject: Subject) -> Iterator[Finding]:
    """Read the configuration and the tokenizer of the model."""
    config, tokenizer = subject.policy.config, subject.policy.tokenizer
    yield passed(f"{config.model_type} with {type(tokenizer).__name__} of {len(tokenizer):,} tokens.")


def look_at_questions(subject: Subject) -> Iterator[Finding]:
    """Read the first question."""
    question = subject.question
    text = " ".join(question.messages[-1].content.split()) if question.messages else ""
    yield passed(f"the first is {text[:60]!r}, with the answer {next(iter(question.answers), '(none)')[:40]!r}.")
    if not question.answers:
        yield warned("It has no accepted answer.", "A reward must then know by itself what is right.")


def look_at_round_trip(subject: Subject) -> Iterator[Finding]:
    """Write, encode, decode, parse and score what a perfect policy would write, as each run does at its start."""
    trip = RoundTrip.of(
        subject.policy,
        subject.task,
        subject.chat_format,
        subject.tools,
        reward=subject.reward,
        scoring=subject.scoring,
        max_response_tokens=subject.cfg.rollout.sampling.max_response_tokens,
    )
    num_tokens = trip.run()
    calls = f"a call of each of {len(subject.tools.tool_names)} tools" if subject.tools.tool_names else "no call"
    yield passed(f"a perfect answer with {calls} comes back whole, in {num_tokens} tokens.")


def look_at_reward(subject: Subject) -> Iterator[Finding]:
    """Have a right answer, a wrong one and none scored."""
    question = subject.question
    gold = next(iter(question.answers), "")
    if not gold:
        yield skipped("no answer is known to be right.")
        return
    right, wrong, empty = (_scored(subject, question, text) for text in (_written(gold), _written(_WRONG), ""))
    lost = [each for each in (right, wrong, empty) if not each.is_scored or each.has_failed]
    if lost:
        yield skipped(f"it does not say what an answer is worth: {lost[0].reason or 'it abstains'}.")
    elif right.reward == wrong.reward == empty.reward:
        yield warned(
            f"constant: a right answer, a wrong one and none all earn {right.reward:g}, so that every advantage is "
            "zero unless it looks at something else.",
            "See whether it compares with the accepted answers, and where it looks for the answer.",
        )
    elif right.reward <= wrong.reward:
        yield warned(
            f"a right answer earns {right.reward:g}, a wrong one {wrong.reward:g}.",
            "See whether it compares with the accepted answers, and where it looks for the answer.",
        )
    else:
        yield passed(f"a right answer earns {right.reward:g}, a wrong one {wrong.reward:g}, none {empty.reward:g}.")


def _written(answer: str) -> str:
    return f"<think> well </think> <answer> \\boxed{{ {answer} }} </answer>"


def _scored(subject: Subject, question: Question, text: str) -> RewardOutput:
    limit = subject.cfg.rollout.sampling.max_response_tokens
    sample = RewardInput(question=question, response_text=text, num_response_tokens=9, max_response_tokens=limit)
    return run_in_event_loop(score(subject.reward, sample, subject.scoring))


def look_at_branch_rule(subject: Subject) -> Iterator[Finding]:
    """Ask the rule of branches about all that entropies can be."""
    policy = subject.algorithm.branch_policy
    if isinstance(policy, NeverBranch | Independent):
        yield skipped(f"{subject.algorithm.name} does not branch.")
        return
    share = branching_share(policy)
    if not share:
        yield warned(
            "never fires: no branch is opened whatever the entropies are, so that the budget of branches goes to "
            "fresh chains.",
            _advice(policy, "lower", "raise"),
        )
    elif share == 1:
        yield warned(
            "always fires: a branch is opened after every tool result, whatever the entropies are.",
            _advice(policy, "raise", "lower"),
        )
    else:
        yield passed(f"{type(policy).__name__} opens a branch in {share:.0%} of all cases that there can be.")
    if isinstance(policy, EntropyBalanced) and policy.decision == "bernoulli" and policy.tau != EntropyBalanced().tau:
        yield warned(
            f"`tau` is {policy.tau:g}, but decision=bernoulli does not look at it.",
            "Set algorithm.branch_policy.decision=threshold, or change alpha and gamma.",
        )


def _advice(policy: BranchPolicy, tau: str, alpha: str) -> str:
    if isinstance(policy, EntropyBalanced):
        if policy.decision == "threshold":
            return f"{tau.capitalize()} algorithm.branch_policy.tau, or {alpha} alpha."
        return f"{alpha.capitalize()} algorithm.branch_policy.alpha, or raise gamma."
    return "Change the settings of algorithm.branch_policy."


def branching_share(policy: BranchPolicy) -> float:
    """Return in which share of all cases a rule opens a branch, in the first decision of a chain.

    Args:
        policy: Asked about a grid of entropies (in ln V) at the start and now, and of draws.
    """
    grid: Sequence[float] = [step / _STEPS for step in range(_STEPS)]
    wanted = [
        policy.num_branches(BranchContext(entropy=now, initial_entropy=before, consecutive_branches=0, uniform=uniform))
        > 0
        for now in grid
        for before in grid
        for uniform in grid
    ]
    return sum(wanted) / len(wanted)
