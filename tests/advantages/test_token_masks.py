"""Which tokens of an optimiser step are left out or penalised, by entropy and by covariance."""

import pytest
import torch

from aepo_lightning.advantages import ClipCov, KLCov, TopEntropyMask
from aepo_lightning.advantages.step_tokens import covariance_terms
from aepo_lightning.contracts.shaping import AdvantageShaping
from tests.support.step_batches import PARTS, WHOLE, by_row, make_rows, split

PARTS_OF_A_STEP = {
    "top entropy": TopEntropyMask(fraction=0.3),
    "clip-cov": ClipCov(fraction=0.1, lowest=0.1, highest=2.0),
    "kl-cov": KLCov(fraction=0.1, coefficient=0.5),
}
every_part = pytest.mark.parametrize("part", PARTS_OF_A_STEP.values(), ids=PARTS_OF_A_STEP)


@every_part
def test_what_a_token_gets_does_not_depend_on_the_split(part):
    rows = make_rows()
    whole, parts = (by_row(part(split(rows, *each)), *each) for each in (WHOLE, PARTS))
    assert torch.equal(whole, parts)
    assert 0 < int(whole.count_nonzero()) < int(rows["response_mask"].sum())


@every_part
def test_padding_and_empty_rows_have_nothing(part):
    rows = make_rows()
    rows["response_mask"][3] = False
    (found,) = part(split(rows, *WHOLE))
    assert not found[~rows["response_mask"]].any()


def test_the_most_uncertain_tokens_keep_their_advantage():
    rows = make_rows()
    (batch,) = split(rows, *WHOLE)
    (found,) = TopEntropyMask(fraction=0.2)([batch])
    mask = batch.response_mask
    entropies = sorted(batch.old_entropies[mask].tolist(), reverse=True)
    border = entropies[round(0.2 * len(entropies)) - 1]
    for row, column in mask.nonzero().tolist():
        kept = float(batch.old_entropies[row, column]) >= border
        assert float(found[row, column]) == (float(batch.advantages[row, column]) if kept else 0.0)
    # None is 0 by itself.
    assert int(found.count_nonzero()) == round(0.2 * len(entropies))


def test_every_token_is_kept_at_fraction_one():
    (batch,) = split(make_rows(), *WHOLE)
    assert torch.equal(TopEntropyMask(fraction=1.0)([batch])[0], batch.advantages)


def test_the_token_at_the_border_is_chosen_in_double_precision_as_well():
    rows = make_rows()
    rows["old_entropies"] = torch.full((8, 12), 2 / 3, dtype=torch.float64)  # less than the nearest float32
    (batch,) = split(rows, *WHOLE)
    assert torch.equal(TopEntropyMask(fraction=0.1)([batch])[0], batch.advantages)
    for seed in range(6):
        rows = make_rows(seed=seed)
        rows["old_logprobs"] = rows["old_logprobs"].double() / 3
        assert int(KLCov(fraction=0.001)(split(rows, *WHOLE))[0].count_nonzero()) == 1


def test_tokens_with_the_entropy_at_the_border_are_kept_together():
    rows = make_rows()
    rows["old_entropies"] = (rows["old_entropies"] > 0.5).float()
    (found,) = TopEntropyMask(fraction=0.01)(split(rows, *WHOLE))
    expected = int((rows["response_mask"] & (rows["old_entropies"] == 1)).sum())
    assert int(found.count_nonzero()) == expected


def test_clip_cov_takes_its_share_from_between_the_bounds_and_no_other():
    rows = make_rows()
    (batch,) = split(rows, *WHOLE)
    (covariances,) = covariance_terms([batch])
    inside = batch.response_mask & (covariances > 0.1) & (covariances < 2.0)
    (found,) = ClipCov(fraction=0.1, lowest=0.1, highest=2.0)([batch])
    lost = (found == 0) & batch.response_mask
    assert torch.equal(found[~lost], batch.advantages[~lost])
    assert int(lost.sum()) == round(0.1 * int(batch.response_mask.sum())) < int(inside.sum())
    assert not (lost & ~inside).any()
    (all_of_them,) = ClipCov(fraction=1.0, lowest=0.1, highest=2.0)([batch])
    assert torch.equal((all_of_them == 0) & batch.response_mask, inside)


def test_clip_cov_leaves_a_step_without_candidates_as_it_is():
    (batch,) = split(make_rows(), *WHOLE)
    assert torch.equal(ClipCov(lowest=50.0, highest=60.0)([batch])[0], batch.advantages)


def test_clip_cov_draws_every_candidate_equally_often():
    (batch,) = split(make_rows(num_rows=4), [0, 1, 2, 3])
    clip = {"fraction": 0.5, "lowest": -50.0, "highest": 50.0}
    candidates, times = batch.response_mask, torch.zeros(batch.response_mask.shape)
    for seed in range(40):
        times += (ClipCov(seed=seed, **clip)([batch])[0] == 0) & candidates
    assert int(times.sum()) == 40 * round(0.5 * int(candidates.sum()))
    # 20 of 40, with a standard deviation of sqrt(10).
    assert float((times[candidates] - 20).abs().max()) < 15


def test_kl_cov_penalises_the_tokens_with_the_highest_covariance():
    (batch,) = split(make_rows(), *WHOLE)
    (covariances,) = covariance_terms([batch])
    (found,) = KLCov(fraction=0.1, coefficient=0.5)([batch])
    chosen = covariances[found > 0]
    assert set(found.unique().tolist()) == {0.0, 0.5}
    assert len(chosen) == round(0.1 * int(batch.response_mask.sum()))
    assert chosen.min() > covariances[(found == 0) & batch.response_mask].max()


def test_kl_cov_penalises_nothing_in_a_step_without_advantages():
    rows = make_rows()
    rows["advantages"] = torch.zeros(8, 12)
    assert not KLCov(fraction=0.1)(split(rows, *WHOLE))[0].any()


@pytest.mark.parametrize("part", [TopEntropyMask(), ClipCov()])
def test_masks_satisfy_the_protocol(part):
    assert isinstance(part, AdvantageShaping)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopEntropyMask(fraction=0.0), r"`fraction` must be in \(0, 1\], but got 0.0"),
        (lambda: ClipCov(fraction=2.0), r"`fraction` must be in \(0, 1\], but got 2.0"),
        (lambda: ClipCov(lowest=5.0, highest=1.0), "`lowest` must be below `highest`, but got 5.0 and 1.0"),
        (lambda: KLCov(fraction=-0.1), r"`fraction` must be in \(0, 1\], but got -0.1"),
        (lambda: KLCov(coefficient=0.0), "`coefficient` must be positive and finite, but got 0.0"),
    ],
    ids=["mask", "clip", "bounds", "penalty", "coefficient"],
)
def test_refuses_settings_without_meaning(make, message):
    with pytest.raises(ValueError, match=message):
        make()
