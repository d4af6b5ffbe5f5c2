import math
import random

import pytest
import torch

from aepo_lightning.objectives.aggregation import LossAggregation

MODES = [
    LossAggregation(mode="token-mean"),
    LossAggregation(mode="seq-mean-token-mean"),
    LossAggregation(mode="seq-mean-token-sum-norm", norm_length=10),
]
IDS = [aggregation.mode for aggregation in MODES]


def make_batch(num_rows=9, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    losses = torch.randn(num_rows, width, dtype=torch.float64, generator=generator)
    mask = torch.rand(num_rows, width, generator=generator) < 0.6
    mask[2] = False
    return losses, mask


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    # Rows (1, 2, 3) and (6): 12 tokens' worth over 4 tokens = 3; (2 + 6) / 2 = 4; (6 / 10 + 6 / 10) / 2 = 0.6.
    list(zip(MODES, [3.0, 4.0, 0.6], strict=True)),
    ids=IDS,
)
def test_loss_by_hand(aggregation, expected):
    losses = torch.tensor([[1.0, 2.0, 3.0], [6.0, 100.0, 100.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert aggregation(losses, mask, 4, 2).item() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("aggregation", MODES, ids=IDS)
@pytest.mark.parametrize("seed", range(5))
def test_any_split_and_order_gives_the_same_loss_and_gradient(aggregation, seed):
    losses, mask = make_batch()
    totals = (int(mask.sum()), int(mask.any(-1).sum()))
    whole = losses.clone().requires_grad_()
    loss = aggregation(whole, mask, *totals)
    loss.backward()
    rng = random.Random(seed)
    order = rng.sample(range(9), 9)
    cuts = sorted(rng.sample(range(1, 9), 3))
    parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, 9], strict=True)]
    split = losses.clone().requires_grad_()
    total = 0.0
    for rows in parts:
        share = aggregation(split[rows], mask[rows], *totals)
        share.backward()
        total += share.item()
    torch.testing.assert_close(split.grad, whole.grad, rtol=1e-12, atol=1e-12)
    assert total == pytest.approx(loss.item(), abs=1e-12)


@pytest.mark.parametrize("aggregation", MODES, ids=IDS)
def test_padding_of_a_micro_batch_changes_nothing(aggregation):
    losses, mask = make_batch()
    padded_losses = torch.nn.functional.pad(losses, (0, 4), value=math.nan)
    padded_mask = torch.nn.functional.pad(mask, (0, 4), value=False)
    wide = aggregation(padded_losses, padded_mask, 30, 8)
    torch.testing.assert_close(wide, aggregation(losses, mask, 30, 8))


@pytest.mark.parametrize("aggregation", MODES, ids=IDS)
def test_a_micro_batch_without_response_tokens_is_worth_zero(aggregation):
    losses = torch.full((2, 3), math.nan, requires_grad=True)
    share = aggregation(losses, torch.zeros(2, 3, dtype=torch.bool), 5, 2)
    share.backward()
    assert share.item() == 0.0
    assert losses.grad.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("aggregation", MODES, ids=IDS)
def test_refuses_a_step_without_tokens(aggregation):
    losses, mask = make_batch()
    with pytest.raises(ValueError, match=r"`global_num_(tokens|sequences)` must be positive, but got 0"):
        aggregation(losses, mask, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm_length": 5}, "`norm_length` must be None for mode 'token-mean', but got 5"),
        ({"mode": "seq-mean-token-sum-norm"}, "`norm_length` must be given for mode 'seq-mean-token-sum-norm'"),
        ({"mode": "seq-mean-token-sum-norm", "norm_length": 0}, "`norm_length` must be at least 1, but got 0"),
    ],
    ids=["superfluous", "missing", "zero"],
)
def test_refuses_settings_without_meaning(arguments, message):
    with pytest.raises(ValueError, match=message):
        LossAggregation(**arguments)
