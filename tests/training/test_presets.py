"""Presets from rewards to the gradient of the first step, against the equations of their papers in plain Python."""

import math
import statistics

import pytest

from aepo_lightning.contracts.objective import ObjectiveInput
from aepo_lightning.policy.network import TokenScores
from aepo_lightning.training.experience import ExperienceSettings
from aepo_lightning.training.presets import AT2PO, CISPO, EMPG, RLOO, DrGRPO, GiGPO, ReinforcePP, ReinforcePPBaseline
from aepo_lightning.training.rollout_parts import experience_builder
from tests.support.branched import grow
from tests.support.training import policy_turn, tool_turn

REWARDS, LENGTHS = [1.0, 0.0, 0.25], [3, 2, 1]
CHAINS = [
    [policy_turn(5), tool_turn(9), policy_turn(6, 7), 1.0],
    [policy_turn(8), tool_turn(9), policy_turn(10), 0.0],
    [policy_turn(11), 0.25],
]
NORM = 10


def score(batch):
    return TokenScores(logprobs=batch.sampler_logprobs, entropies=batch.sampler_entropies)


def token_gradients(algorithm, trees):
    """Response token -> d loss / d log p at the policy that sampled, summed over its copies."""
    settings = ExperienceSettings(questions_per_step=len(trees))
    builder = experience_builder(algorithm, settings, pad_token_id=0, max_response_tokens=32)
    (step,) = builder.build(trees, score)
    (batch,) = step.micro_batches
    logprobs = batch.old_logprobs.clone().requires_grad_()
    output = algorithm.objective(
        ObjectiveInput(
            logprobs=logprobs,
            old_logprobs=batch.old_logprobs,
            advantages=batch.advantages,
            response_mask=batch.response_mask,
        )
    )
    totals = (step.global_num_tokens, step.global_num_sequences)
    algorithm.aggregation(output.token_losses, batch.response_mask, *totals).backward()
    found = {}
    for ids, mask, values in zip(batch.input_ids, batch.response_mask, logprobs.grad, strict=True):
        for token, value in zip(ids[1:][mask].tolist(), values[mask].tolist(), strict=True):
            found[token] = found.get(token, 0.0) + value
    return found


def each(*values):
    """Numbers of the six response tokens, by trajectory: 5, 6, 7; 8, 10; 11."""
    return dict(zip((5, 6, 7, 8, 10, 11), values, strict=True))


def spread(values):
    return each(*(value for value, length in zip(values, LENGTHS, strict=True) for _ in range(length)))


def test_dr_grpo():
    # Its eq. for the gradient: 1/G sum_i sum_t (R_i - mean) grad log p, with a constant for the length.
    mean = sum(REWARDS) / 3
    expected = spread([-(reward - mean) / 3 / NORM for reward in REWARDS])
    assert token_gradients(DrGRPO(norm_length=NORM), [grow(CHAINS)]) == pytest.approx(expected, rel=1e-5)


def test_rloo():
    # 1/k sum_i (R_i - 1/(k-1) sum_{j != i} R_j) grad log p(y_i), a response being one action.
    baselines = [(sum(REWARDS) - reward) / 2 for reward in REWARDS]
    expected = spread([-(r - b) / 3 / NORM for r, b in zip(REWARDS, baselines, strict=True)])
    assert token_gradients(RLOO(norm_length=NORM), [grow(CHAINS)]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("preset", "is_centered"), [(ReinforcePP, False), (ReinforcePPBaseline, True)])
def test_reinforce_pp(preset, is_centered):
    # Two questions; advantages less the mean over all tokens, over their deviation, then the mean over tokens.
    other = [[policy_turn(12), 0.5], [policy_turn(13, 14), 1.0]]
    groups = [(REWARDS, LENGTHS), ([0.5, 1.0], [1, 2])]
    advantages = [r - (statistics.fmean(rewards) if is_centered else 0.0) for rewards, _ in groups for r in rewards]
    lengths = [length for _, each_length in groups for length in each_length]
    tokens = [a for a, length in zip(advantages, lengths, strict=True) for _ in range(length)]
    mean, std = statistics.fmean(tokens), statistics.stdev(tokens)
    expected = dict(zip((5, 6, 7, 8, 10, 11, 12, 13, 14), (-(a - mean) / std / 9 for a in tokens), strict=True))
    assert token_gradients(preset(), [grow(CHAINS), grow(other, "r")]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_gigpo():
    # Episodes less their mean. Steps: the prompt has all three (0.95 R_1, 0.95 R_2, R_3), the result 9 has two.
    episode = [reward - sum(REWARDS) / 3 for reward in REWARDS]
    first = [0.95, 0.0, 0.25]
    start = [value - sum(first) / 3 for value in first]
    later = [0.5, -0.5]
    advantages = each(
        episode[0] + start[0], episode[0] + later[0], episode[0] + later[0],
        episode[1] + start[1], episode[1] + later[1], episode[2] + start[2],
    )  # fmt: skip
    expected = {token: -value / 6 for token, value in advantages.items()}
    assert token_gradients(GiGPO(), [grow(CHAINS)]) == pytest.approx(expected, rel=1e-5)


def test_at2po():
    # One chain forks after its first turn; log-probs are -token / 10, so the mean -log p of a turn is mean(token) / 10.
    fork = [policy_turn(5), tool_turn(9), [[policy_turn(6, 8), 1.0], [policy_turn(10), 0.0]]]
    tree = grow([fork, [policy_turn(11), 0.25]])
    mean, std = statistics.fmean(REWARDS), statistics.stdev(REWARDS)
    good, bad, alone = ((reward - mean) / (std + 1e-6) for reward in REWARDS)
    shares = math.exp(0.7), math.exp(1.0)
    shared = (shares[0] * good + shares[1] * bad) / sum(shares)
    # Each trajectory counts the same, and each of its tokens: 5 is in one of three tokens and in one of two.
    expected = {
        5: -shared * (1 / 3 + 1 / 2) / 3,
        6: -good / 3 / 3, 8: -good / 3 / 3, 10: -bad / 2 / 3, 11: -alone / 3,
    }  # fmt: skip
    assert token_gradients(AT2PO(), [tree]) == pytest.approx(expected, rel=1e-5)


def z_scores():
    mean, std = statistics.fmean(REWARDS), statistics.stdev(REWARDS)
    return [(reward - mean) / (std + 1e-6) for reward in REWARDS]


def test_cispo():
    # Eq. 4 at ratio 1: the mean over all tokens of A_i grad log p.
    expected = spread([-advantage / 6 for advantage in z_scores()])
    assert token_gradients(CISPO(), [grow(CHAINS)]) == pytest.approx(expected, rel=1e-5)


def test_empg():
    # Entropies are token / 100: the turns have 0.05, 0.065; 0.08, 0.1; 0.11, or 0, 1/4; 1/2, 5/6; 1 of the range.
    first, second, third = z_scores()
    shares = [0, 1 / 4, 1 / 2, 5 / 6, 1]
    scale = statistics.fmean(math.exp(-h) for h in shares)
    clarity = [0.05 * math.exp(-shares[1]), 0, 0.05 * math.exp(-shares[3]), 0, 0]
    turns = [
        advantage * math.exp(-h) / scale + bonus
        for advantage, h, bonus in zip((first, first, second, second, third), shares, clarity, strict=True)
    ]
    a, b, c, d, e = (turn - statistics.fmean(turns) for turn in turns)
    expected = {token: -value / 6 for token, value in each(a, b, b, c, d, e).items()}
    assert token_gradients(EMPG(), [grow(CHAINS)]) == pytest.approx(expected, rel=1e-5)
