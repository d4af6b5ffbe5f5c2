"""The paper's reward as a sum of terms gives the numbers of `PaperReward`, bit for bit."""

import asyncio
from random import Random

import pytest
from omegaconf import OmegaConf

from aepo_lightning.app.build import build
from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.contracts.reward import RewardInput
from aepo_lightning.contracts.tool import ToolCall, ToolResult, ToolStatus
from aepo_lightning.rewards import PaperReward
from tests.support.paths import ROOT

WORDS = (
    "new",
    "york",
    "the",
    "City",
    "3.5",
    "35",
    "-5",
    "1/2",
    "0.5",
    "(B)",
    "B",
    "yes",
    "no",
    "\uff17",
    "e\u0301",
    "+",
)
PIECES = (
    *("<think>", "</think>", "<answer>", "</answer>", "<search>", "</search>", "<python>", "</python>"),
    *("<result>", "</result>", r"\boxed{", r"\boxed", r"\boxed ", "{", "}", "\r\n", "$", *WORDS),
)


def words(random):
    return " ".join(random.choice(WORDS) for _ in range(random.randrange(4)))


def well_formed(random, gold):
    calls = "".join(
        f"<{tag}>{words(random)}</{tag}><result>{words(random)}</result><think></think>"
        for tag in ("search", "python")
        if random.random() < 0.6
    )
    box = random.choice((r"\boxed{%s}", r"\boxed{%s} \boxed{%s}", r"\boxed{{%s}}", r"\boxed %s$ \boxed{%s}"))
    answer = gold if random.random() < 0.5 else words(random)
    return f"<think>t</think>{calls}<answer>{box.replace('%s', answer)}</answer>"


def response(random, gold):
    """A well-formed response, one with a piece more or less, or any pieces."""
    text = well_formed(random, gold)
    kind = random.randrange(4)
    if kind == 0:
        place = random.randrange(len(text))
        return text[:place] + random.choice(PIECES) + text[place:]
    if kind == 1:
        start = random.randrange(len(text))
        return text[:start] + text[start + random.randrange(9) :]
    return text if kind == 2 else "".join(random.choice(PIECES) for _ in range(random.randrange(30)))


def trajectory(seed):
    random = Random(seed)
    golds = tuple(words(random) or "york" for _ in range(random.randrange(1, 4)))
    statuses = [random.choice(list(ToolStatus)) for _ in range(random.randrange(4))]
    return RewardInput(
        question=Question(question_id=f"q{seed}", messages=(Message(role="user", content="?"),), answers=golds),
        response_text=response(random, golds[0]),
        tool_calls=tuple(ToolCall(tool=random.choice(("search", "python")), text="x") for _ in statuses),
        tool_results=tuple(ToolResult(text="r", status=status) for status in statuses),
    )


def composed(match, box, from_executed_calls):
    cfg = OmegaConf.load(ROOT / "conf" / "reward" / "paper_terms.yaml")
    cfg.terms.answer.checker.comparison, cfg.terms.answer.place, cfg.terms.format.box = match, box, box
    cfg.terms.tools.from_executed_calls = from_executed_calls
    return build(cfg)


def compare(samples, match, box, from_executed_calls):
    """Return how many of the rewards are positive."""
    paper = PaperReward(match=match, box=box, bonus_from_executed_calls=from_executed_calls)
    total = composed(match, box, from_executed_calls)
    assert total.is_immediate

    async def scored():
        return [(await paper(sample), await total(sample)) for sample in samples]

    pairs = asyncio.run(scored())
    for expected, found in pairs:
        facts = [
            (each.reward, each.is_correct, each.is_well_formed, each.f1, each.answer) for each in (expected, found)
        ]
        assert facts[0] == facts[1]
        assert found.is_scored
        assert found.terms["answer"] == expected.f1
        assert found.terms["format"] == -float(not expected.is_well_formed)
    return sum(expected.reward > 0 for expected, _ in pairs)


VARIANTS = [("typed", "strict", False), ("words", "official", False), ("typed", "strict", True)]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_sum_of_terms_gives_what_the_reward_of_the_paper_gives(variant):
    num_positive = compare([trajectory(seed) for seed in range(400)], *variant)
    assert 40 < num_positive < 300


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_sum_of_terms_gives_it_for_ten_thousand_responses(variant):
    compare([trajectory(seed) for seed in range(10_000)], *variant)


def test_its_defaults_are_those_of_the_paper():
    assert composed("typed", "strict", False) == build(OmegaConf.load(ROOT / "conf" / "reward" / "paper_terms.yaml"))
