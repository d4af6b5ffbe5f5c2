"""The KL penalty in the reward: REINFORCE++ from its equations, and nothing of it in the loss."""

import pytest
import torch

from aepo_lightning.objectives import KLPenalty
from aepo_lightning.training.kl_in_reward import penalise
from aepo_lightning.training.presets import ReinforcePP
from tests.support.training import build_experience, built_module, empty_batch, perturb, random_trees


def test_a_token_pays_for_itself_and_for_those_after_it():
    batch = empty_batch(width=5)
    batch.response_mask = torch.tensor([[True, False, True, True]])
    batch.sequence_advantages = torch.tensor([2.0])
    batch.old_logprobs = torch.tensor([[-1.0, 7.0, -2.0, -3.0]])
    batch.ref_logprobs = torch.tensor([[-1.5, 0.0, -1.0, -3.5]])
    # log-ratios 0.5, -1, 0.5: from the first on 0, from the second -0.5, from the third 0.5; half of each.
    penalise([batch], KLPenalty(coefficient=0.5, estimator="k1", place="reward"))
    assert batch.token_advantages.tolist() == [[2.0, 0.0, 2.25, 1.75]]


def test_reinforce_pp_equals_its_equations():
    penalty = KLPenalty(coefficient=0.3, estimator="k1", place="reward")
    algorithm = ReinforcePP(kl_penalty=penalty)
    module = built_module(algorithm=algorithm)
    perturb(module.network)
    parts = {"advantage_estimator": algorithm.advantage_estimator, "normalize_over": "step", "kl_penalty": penalty}
    options = {"packing": "tree", "max_tokens_per_micro_batch": 60, "old_logprobs": "auto"}
    (step,) = build_experience(module, random_trees(2), **parts, **options)
    found, expected = [], []
    for batch in step.micro_batches:
        rows = zip(batch.response_mask, batch.old_logprobs, batch.ref_logprobs, batch.rewards, strict=True)
        for index, (mask, old, ref, reward) in enumerate(rows):
            costs = [float(value) for value in (old - ref)[mask]]
            found += batch.advantages[index][mask].tolist()
            expected += [float(reward) - 0.3 * sum(costs[t:]) for t in range(len(costs))]
    mean = sum(expected) / len(expected)
    std = (sum((value - mean) ** 2 for value in expected) / (len(expected) - 1)) ** 0.5
    assert found == pytest.approx([(value - mean) / std for value in expected], rel=1e-3, abs=1e-4)


def test_the_loss_has_no_penalty_that_is_in_the_reward():
    module = built_module(kl_penalty=KLPenalty(coefficient=5.0, place="reward"))
    perturb(module.network)
    (step,) = build_experience(module, random_trees(1), kl_penalty=module.algorithm.kl_penalty)
    (batch,) = step.micro_batches
    assert batch.ref_logprobs is not None
    with_reference, _ = module.policy_loss(module.network, batch, step)
    batch.ref_logprobs = None
    assert torch.equal(with_reference, module.policy_loss(module.network, batch, step)[0])
