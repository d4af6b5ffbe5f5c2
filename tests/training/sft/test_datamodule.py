"""Optimiser steps of conversations: each demonstration once a pass, the same steps for any number of ranks."""

from collections import Counter
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from aepo_lightning.callbacks import AtomicCheckpoint
from aepo_lightning.checkpoints import find_last
from aepo_lightning.errors import ConfigError, TrainingError
from aepo_lightning.policy.lora import LoRA
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.publishing.gather import named_weights
from aepo_lightning.training.coldstart import ColdStartModule
from aepo_lightning.training.sft import RowCounts, SFTDataModule, SFTRow, SFTRows, SFTSettings
from tests.support.ranks import run_ranks
from tests.support.training import flat, make_run, small_policy

VOCAB = len(small_policy().tokenizer)


def drawn_rows(count, seed=0):
    """Random tokens; each row has its number as its first token, so that it can be told from the others."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        length = int(random.integers(4, 20))
        tokens = random.integers(3, VOCAB, length).astype(np.int32)
        tokens[0] = 3 + number
        is_trained = random.random(length) < 0.5
        is_trained[0], is_trained[-1] = False, True
        rows.append(SFTRow(token_ids=tokens, is_trained=is_trained))
    return rows


ROWS = SFTRows(train=drawn_rows(10), val=drawn_rows(5, seed=1), counts=RowCounts())


def data_of(rank=0, world=1, **settings):
    data = SFTDataModule(ROWS, SFTSettings(**({"batch_size": 4} | settings)), pad_token_id=0)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world, global_step=0)
    return data


def numbers_in(step):
    return [int(row[0]) - 3 for batch in step.micro_batches for row in batch.input_ids if int(row[0])]


def test_every_demonstration_comes_once_in_each_pass_and_in_another_order():
    data = data_of(num_epochs=2)
    assert data.num_steps == 5
    steps = [sorted(numbers_in(data.step(index))) for index in range(5)]
    assert [len(step) for step in steps] == [4] * 5
    assert Counter(number for step in steps for number in step) == dict.fromkeys(range(10), 2)
    first = [number for step in steps[:2] for number in step]
    assert len({*first}) == 8  # of one pass
    assert steps != [sorted(numbers_in(data_of(num_epochs=2, seed=1).step(index))) for index in range(5)]
    assert steps[3] == sorted(numbers_in(data.step(3))), "a step is a function of its number"


def test_the_last_step_takes_what_is_left():
    data = data_of(num_epochs=0.6)
    assert data.num_steps == 2
    assert [len(numbers_in(data.step(index))) for index in range(2)] == [4, 2]
    assert data_of(num_epochs=9, num_steps=3).num_steps == 3


def test_a_part_goes_on_from_where_the_trainer_stands():
    data = data_of(num_epochs=2, steps_per_part=2)
    for done, expected in ((0, 2), (1, 1), (2, 2), (4, 1), (5, 0)):
        data.trainer.global_step = done
        assert len(list(data.part())) == expected


@pytest.mark.parametrize("packing", ["flat", "padded"])
def test_ranks_share_a_step(packing):
    options = {"packing": packing, "max_tokens_per_micro_batch": 40}
    whole = data_of(**options).step(1)
    parts = [data_of(rank, 2, **options).step(1) for rank in range(2)]
    assert sorted(numbers_in(whole)) == sorted(number for part in parts for number in numbers_in(part))
    assert {len(numbers_in(part)) for part in parts} == {2}
    own = [sum(int(batch.response_mask.sum()) for batch in part.micro_batches) for part in parts]
    assert min(own) > 0
    assert [whole.num_tokens] * 2 == [part.num_tokens for part in parts] == [sum(own)] * 2, "every rank knows the sum"


@pytest.mark.parametrize("packing", ["flat", "padded"])
def test_a_rank_without_demonstrations_has_something_to_run(monkeypatch, packing):
    monkeypatch.setattr("aepo_lightning.training.batching.all_reduce", lambda *_: [1.0])  # the others'
    data = data_of(rank=3, world=4, num_epochs=0.3, packing=packing)
    [batch] = data.step(0).micro_batches
    assert not batch.response_mask.any()
    network = PolicyNetwork(small_policy().build_model())
    network(batch.input_ids, batch.response_mask, packed=batch.packed).logprobs.sum().backward()
    assert flat(each.grad for each in network.parameters()).eq(0).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"packing": "tree"},
        {"batch_size": 0},
        {"num_epochs": 0},
        {"num_epochs": float("inf")},
        {"steps_per_part": 0},
        {"num_steps": 0},
        {"max_tokens_per_micro_batch": 0},
    ],
)
def test_settings_without_meaning_are_refused(settings):
    with pytest.raises(ConfigError, match=f"`{next(iter(settings))}`"):
        SFTSettings(**({"batch_size": 4} | settings))


# Runs ---------------------------------------------------------------------------------------------------------------


def sft_run(folder, policy=None, module=None, callbacks=(), trainer=None, **settings):
    module = module or ColdStartModule(policy or small_policy(), partial(torch.optim.AdamW, lr=1e-2, eps=1e-5))
    data = SFTDataModule(ROWS, SFTSettings(**({"batch_size": 4, "num_epochs": 2} | settings)), pad_token_id=0)
    options = {"max_epochs": -1, "max_steps": data.num_steps, "limit_val_batches": 1.0, "inference_mode": False}
    options |= {"check_val_every_n_epoch": 1, "num_sanity_val_steps": 0, "callbacks": [*callbacks]}
    return make_run(folder, module, data, **(options | (trainer or {})))


def double(policy):
    build = policy.build_model
    policy.build_model = lambda: build().double()
    return policy


def reference_loss(model, rows):
    """Mean cross-entropy of the trained tokens, one row and one token after another."""
    total, number = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        tokens = torch.tensor(row.token_ids.tolist())
        log_p = model(input_ids=tokens[None], use_cache=False).logits[0].double().log_softmax(-1)
        for place in range(1, len(tokens)):
            if row.is_trained[place]:
                total, number = total - log_p[place - 1, tokens[place]], number + 1
    return total / number


@pytest.mark.parametrize("packing", ["flat", "padded"])
def test_loss_and_gradient_are_those_of_single_rows_in_float64(tmp_path, packing):
    policy = double(small_policy())
    module = ColdStartModule(policy, partial(torch.optim.SGD, lr=1.0), max_grad_norm=1e9)
    run = sft_run(tmp_path, module=module, num_steps=1, packing=packing, max_tokens_per_micro_batch=40)
    shown = {*numbers_in(data_of(num_epochs=2).step(0))}
    run.fit()
    model = policy.build_model()
    loss = reference_loss(model, [row for row in ROWS.train if int(row.token_ids[0]) - 3 in shown])
    loss.backward()
    assert run.logger.values("coldstart/loss") == [pytest.approx(float(loss.detach()), rel=1e-6)]  # the log has float32
    update = flat(model.parameters()) - flat(run.network.parameters())
    torch.testing.assert_close(update, flat(each.grad for each in model.parameters()), atol=1e-10, rtol=1e-7)
    with torch.no_grad():
        expected = reference_loss(run.network.model, ROWS.val)
    assert run.logger.values("coldstart/val_loss") == [pytest.approx(float(expected), rel=1e-6)]


def train(rank, folder, devices=1):
    """Weights and logs after two passes over the rows."""
    strategy = ModelParallelStrategy(data_parallel_size=devices, tensor_parallel_size=1) if devices > 1 else "auto"
    run = sft_run(
        folder, trainer={"devices": devices, "strategy": strategy}, max_tokens_per_micro_batch=40, steps_per_part=3
    ).fit()
    return run.logger.numbers(), {name: weight.clone() for name, weight in named_weights(run.network)}


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_train_as_one_process_does(tmp_path):
    logs, weights = train(0, tmp_path / "single")
    ranks = run_ranks(partial(train, devices=2), tmp_path / "ranks")
    for (step, name, found), (_, _, expected) in zip(ranks[0][0], logs, strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5), (step, name)
    for _, found in ranks:
        torch.testing.assert_close(found, weights, atol=1e-5, rtol=1e-5)


class KilledError(Exception):
    pass


def killed_run(folder, steps, lora=None, batch_size=4):
    """A run that ends with an error after some steps, saved after every second one."""
    module = ColdStartModule(small_policy(), partial(torch.optim.AdamW, lr=1e-2), adapter=lora)
    step = module.training_step

    def training_step(batch, batch_idx):
        if module.global_step == steps:
            raise KilledError
        step(batch, batch_idx)

    module.training_step = training_step
    saver = AtomicCheckpoint(folder / "checkpoints", every_n_epochs=1, keep=1)
    return sft_run(folder, module=module, callbacks=[saver], steps_per_part=2, batch_size=batch_size)


KILLED = {
    "weights": {},
    "adapter": {"lora": LoRA(rank=2, alpha=4.0)},
    "saved where a pass ends": {"batch_size": 5},
}


@pytest.mark.parametrize("options", KILLED.values(), ids=KILLED)
def test_a_run_that_was_killed_in_a_part_ends_with_the_same_weights(tmp_path, options):
    whole = killed_run(tmp_path / "whole", steps=-1, **options).fit()
    with pytest.raises(KilledError):
        killed_run(tmp_path / "cut", steps=3, **options).fit()
    last = find_last(tmp_path / "cut" / "checkpoints")
    resumed = killed_run(tmp_path / "cut", steps=-1, **options).fit(last)
    assert resumed.logger.values("coldstart/loss") == whole.logger.values("coldstart/loss")[2:]
    assert torch.equal(flat(resumed.network.parameters()), flat(whole.network.parameters()))
    assert whole.trainer.global_step == resumed.trainer.global_step == 20 // options.get("batch_size", 4)


def test_a_loss_that_is_not_finite_changes_no_weight(tmp_path):
    run = sft_run(tmp_path, num_steps=1, packing="padded")
    run.module.configure_model()
    with torch.no_grad():
        next(run.network.parameters()).fill_(torch.nan)
    before = flat(run.network.parameters()).nan_to_num()
    with pytest.raises(TrainingError, match="must be finite"):
        run.fit()
    assert torch.equal(flat(run.network.parameters()).nan_to_num(), before)
