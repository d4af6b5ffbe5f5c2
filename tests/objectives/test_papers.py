"""Updates of all presets away from ratio 1: the objectives of the papers in plain Python, derived by differences."""

import math
import random
from itertools import chain
from typing import NamedTuple

import pytest
import torch

from aepo_lightning.contracts.objective import ObjectiveInput
from aepo_lightning.training import presets
from tests.support.paths import CONF

ALGORITHMS = {
    algorithm.name: algorithm
    for algorithm in (
        presets.AEPO(), presets.AEPOOfficial(), presets.AEPOReleased(), presets.AEPOUnbiased(norm_length=9),
        presets.AEPORandomBranching(), presets.ARPO(), presets.AT2PO(), presets.CEGPPO(), presets.CISPO(),
        presets.DAPO(), presets.DrGRPO(norm_length=9), presets.EMPG(), presets.GiGPO(), presets.GPPO(), presets.GRPO(),
        presets.GSPO(), presets.ReinforcePP(), presets.ReinforcePPBaseline(), presets.RLOO(norm_length=9),
    )
}  # fmt: skip


def clip(value, low, high):
    return min(max(value, low), high)


class Token(NamedTuple):
    """What a term of an objective is made of: ratio, the same behind a stop-gradient, advantage, log-prob."""

    r: float
    sg: float
    a: float
    logprob: float


def ppo(low, high):
    return lambda token: min(token.r * token.a, clip(token.r, 1 - low, 1 + high) * token.a)


def ebpo(token):
    return min(token.r * token.a, clip(token.r, 0.8, 1.2 / token.sg * token.r) * token.a)


def gppo(token):
    return min(token.r * token.a, clip(token.r, 0.8 / token.sg * token.r, 1.28 / token.sg * token.r) * token.a)


def ce_gppo(token):
    if token.a < 0 and token.sg < 0.8:
        return 0.75 * 0.8 / token.sg * token.r * token.a
    return (1.28 / token.sg if token.a > 0 and token.sg > 1.28 else 1.0) * token.r * token.a


def cispo(token):
    return min(token.sg, 5.0) * token.a * token.logprob


def dual(term):
    return lambda token: max(term(token), 3 * token.a) if token.a < 0 else term(token)


GRPO = (ppo(0.2, 0.2), "token", "tokens")
PAPERS = {
    **dict.fromkeys(("grpo", "arpo", "empg", "gigpo", "reinforce_pp", "reinforce_pp_baseline"), GRPO),
    **dict.fromkeys(("dr_grpo", "rloo"), (ppo(0.2, 0.2), "token", "sums")),
    **dict.fromkeys(("aepo", "random_branching"), (ebpo, "token", "tokens")),
    **dict.fromkeys(("aepo_official", "aepo_released"), (dual(ebpo), "token", "tokens")),
    "aepo_unbiased": (ebpo, "token", "sums"),
    "dapo": (ppo(0.2, 0.28), "token", "tokens"),
    "gppo": (gppo, "token", "tokens"),
    "ce_gppo": (dual(ce_gppo), "token", "tokens"),
    "cispo": (cispo, "token", "tokens"),
    "gspo": (ppo(3e-4, 4e-4), "sequence", "means"),
    "at2po": (ppo(3e-3, 4e-3), "turn", "means"),
}
"""What is maximised for a token; whose ratio it has, of the token, its turn or its sequence; and what is averaged: all
tokens, means of sequences, or sums of sequences over 9."""


def rows(seed):
    """Sequences as lists of turns, each a list of (old log-prob, change), with an advantage."""
    draw = random.Random(seed)
    for number in range(12):
        turns = [
            [(-3 * draw.random(), draw.gauss(0, 0.9)) for _ in range(draw.randint(1, 4))]
            for _ in range(draw.randint(1, 3))
        ]
        yield turns, (-1) ** number * (0.2 + draw.random())


def ratios(turns, level):
    """The ratio of each token, or the geometric mean of those of its turn or sequence."""
    tokens = [*chain(*turns)]
    parts = {"token": [[token] for token in tokens], "turn": turns, "sequence": [tokens]}[level]
    return [math.exp(sum(change for _, change in part) / len(part)) for part in parts for _ in part]


def objective(paper, sequences, fixed):
    """What the paper maximises; `fixed` are the sequences behind stop-gradients."""
    term, level, average = paper
    totals, lengths = [], []
    for (turns, advantage), (fixed_turns, _) in zip(sequences, fixed, strict=True):
        logprobs = [old + change for turn in turns for old, change in turn]
        parts = zip(ratios(turns, level), ratios(fixed_turns, level), logprobs, strict=True)
        totals.append(sum(term(Token(r, still, advantage, logprob)) for r, still, logprob in parts))
        lengths.append(len(logprobs))
    if average == "means":
        return sum(total / length for total, length in zip(totals, lengths, strict=True)) / len(totals)
    return sum(totals) / (sum(lengths) if average == "tokens" else 9 * len(totals))


def by_differences(paper, sequences, step=1e-6):
    """The derivative by the log-prob of every token, row by row."""
    found = []
    for row, (turns, advantage) in enumerate(sequences):
        own = []
        for place, turn in enumerate(turns):
            for number, (old, change) in enumerate(turn):
                values = []
                for sign in (1, -1):
                    moved = [*turn[:number], (old, change + sign * step), *turn[number + 1 :]]
                    changed = ([*turns[:place], moved, *turns[place + 1 :]], advantage)
                    values.append(objective(paper, [*sequences[:row], changed, *sequences[row + 1 :]], sequences))
                own.append((values[0] - values[1]) / (2 * step))
        found.append(own)
    return found


def inputs_of(sequences):
    """The same as tensors, with a token of a tool between turns."""
    width = max(sum(map(len, turns)) + len(turns) - 1 for turns, _ in sequences)
    old, new = torch.zeros(2, len(sequences), width, dtype=torch.float64)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, (turns, _) in enumerate(sequences):
        places = iter(range(width))
        for turn in turns:
            for logprob, change in turn:
                place = next(places)
                old[row, place], new[row, place], mask[row, place] = logprob, logprob + change, True
            next(places, None)
    advantages = torch.tensor([advantage for _, advantage in sequences], dtype=torch.float64)[:, None].expand(-1, width)
    return ObjectiveInput(
        logprobs=new.requires_grad_(), old_logprobs=old, advantages=advantages.clone(), response_mask=mask
    )


def test_every_preset_is_read_from_its_paper():
    presets_on_file = {path.stem for path in (CONF / "algorithm").glob("[!_]*.yaml")}
    assert set(PAPERS) == set(ALGORITHMS) == presets_on_file


@pytest.mark.parametrize("name", PAPERS)
def test_the_update_is_the_derivative_of_the_papers_objective(name):
    sequences, algorithm = list(rows(seed=3)), ALGORITHMS[name]
    inputs = inputs_of(sequences)
    output = algorithm.objective(inputs)
    counts = int(inputs.response_mask.sum()), len(sequences)
    algorithm.aggregation(output.token_losses, inputs.response_mask, *counts).backward()
    for row, expected in enumerate(by_differences(PAPERS[name], sequences)):
        found = (-inputs.logprobs.grad[row])[inputs.response_mask[row]].tolist()
        # Differences of a step of 1e-6 in double precision.
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    # The data reach every bound that the objective has.
    assert output.metrics["clip_fraction_low"].value() > 0 or name == "cispo"
    assert output.metrics["clip_fraction_high"].value() > 0


def test_the_data_have_turns_and_ratios_on_both_sides():
    sequences = list(rows(seed=3))
    assert {len(turns) for turns, _ in sequences} == {1, 2, 3}
    changes = [change for turns, _ in sequences for turn in turns for _, change in turn]
    assert min(changes) < math.log(0.5)
    assert max(change for turns, a in sequences if a < 0 for turn in turns for _, change in turn) > math.log(3.0)
