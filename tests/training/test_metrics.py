import pytest
import torch

from aepo_lightning.rollout import Tally
from aepo_lightning.training.metrics import ratio_percentiles, reduce_tally


def test_a_tally_becomes_means_and_names_without_weight_vanish():
    tally = Tally()
    tally.add("reward", 1.0)
    tally.add("reward", 0.0, weight=3.0)
    tally.share("empty", 0.0, 0.0)
    tally.observe("entropy_p{}", [2.0, 1.0])
    tally.observe("tool_duration_p{}_s", [])
    assert reduce_tally(tally) == {"reward": 0.25, "entropy_p10": 1.0, "entropy_p90": 2.0}


def test_what_asked_for_a_branch_is_compared_with_the_rate_of_all_decisions_of_all_trees():
    tally = Tally()
    for asked, number in ((1, 2), (5, 6)):
        tally.share("branch_rate", asked, number)
    tally.share("branches_at_depth_1: asked", 1, 2)
    assert reduce_tally(tally) == {"branch_rate": 0.75, "branches_at_depth_1_over_chance": pytest.approx(2 / 3)}


def test_ratio_percentiles_are_those_of_all_micro_batches():
    ratios = [torch.arange(1, 51) / 50, torch.arange(51, 101) / 50]
    found = ratio_percentiles([ratio.log() for ratio in ratios])
    # Hazen's rule: place p n / 100 + 1/2 of 100 numbers.
    places = {1: 1.5, 10: 10.5, 90: 90.5, 99: 99.5}
    assert found == {f"importance_ratio_p{p}": pytest.approx(place / 50, rel=1e-5) for p, place in places.items()}
    assert ratio_percentiles([torch.zeros(0)]) == {}
