"""Going back to the weights of a checkpoint within a run, in one process and on sharded ranks."""

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from typing_extensions import override

from aepo_lightning.callbacks import AtomicCheckpoint, EntropyGuard, GuardSettings, Limits
from aepo_lightning.checkpoints import take_back
from aepo_lightning.errors import DataError
from aepo_lightning.policy.publishing.gather import named_weights
from tests.support.overlapped import overlapped_run
from tests.support.ranks import run_ranks
from tests.support.recording import SetMetrics
from tests.support.training import make_datamodule, make_module, make_run, small_policy

CALM, HIGH = 1.0, 9.0
LIMITS = Limits(num_baseline=1, patience=1, max_kl=1e9, max_clip_fraction=2.0, max_zero_variance=2.0, max_spread=1e9)


class Keep(L.Callback):
    """Takes the weights when an iteration begins and when it is over, and the moments when it is over."""

    def __init__(self):
        self.begun, self.ended, self.moments = [], [], []

    def weights(self, module):
        return {name: weight.clone() for name, weight in named_weights(module.network)}

    @override
    def on_train_epoch_start(self, trainer, pl_module):
        self.begun.append(self.weights(pl_module))

    @override
    def on_train_epoch_end(self, trainer, pl_module):
        self.ended.append(self.weights(pl_module))
        states = trainer.optimizers[0].state.values()
        moments = [state["exp_avg"] for state in states]
        self.moments.append([getattr(each, "full_tensor", lambda each=each: each)().clone() for each in moments])


def equal(one, other):
    return all(torch.equal(one[name], weight) for name, weight in other.items())


def run_guarded(folder, entropies, acts, max_epochs, ckpt_path=None, keep=2, **options):
    """A run whose rollouts are said to have entropies; what was seen after the guard had acted, and its run."""
    policy = small_policy()
    seen, guard = Keep(), EntropyGuard(LIMITS, GuardSettings(acts=acts, cooldown=0))
    saver = AtomicCheckpoint(folder / "checkpoints", every_n_epochs=1, keep=keep)
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.9)
    run = make_run(
        folder,
        make_module(policy, optimizer=partial(torch.optim.AdamW, lr=1e-2), scheduler=schedule),
        options.pop("datamodule", None) or make_datamodule(policy),
        callbacks=[SetMetrics(entropy=entropies, reward=[0.2]), guard, seen, saver],
        max_epochs=max_epochs,
        **options,
    )
    run.fit(ckpt_path)
    return seen, run


def train_on_ranks(rank, folder):
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    entropies = [CALM, CALM, CALM, HIGH if rank == 0 else CALM, CALM]  # rank zero decides for all
    seen, run = run_guarded(folder, entropies, ["roll_back"], 5, devices=2, strategy=strategy)
    return seen.begun, seen.ended, seen.moments, run.logger.values("guard/act")


def check_rolled_back(begun, ended, moments):
    # What iteration 1 left made the last calm rollouts, of iteration 2. The alarm is in iteration 3.
    assert equal(ended[3], ended[1])
    assert all(torch.equal(one, other) for one, other in zip(moments[3], moments[1], strict=True))
    assert equal(begun[4], ended[1])
    assert not equal(ended[2], ended[1])
    assert not equal(ended[4], ended[1])


@pytest.mark.slow
def test_a_run_goes_back_to_the_weights_behind_its_last_calm_rollouts_and_on(tmp_path):
    entropies = [CALM, CALM, CALM, HIGH, CALM]
    seen, run = run_guarded(tmp_path, entropies, ["roll_back"], 5, keep=1)
    check_rolled_back(seen.begun, seen.ended, seen.moments)
    assert run.logger.values("guard/act") == [0, 0, 0, 4, 0]
    steps = len(run.logger.values("train/lr"))
    assert run.trainer.global_step == steps == 5
    assert run.logger.values("train/lr") == pytest.approx([1e-2 * 0.9**step for step in range(steps)])
    # The rollouts after it were made with those weights, and a run that goes on from what was saved then is the same.
    saved = tmp_path / "checkpoints" / "iteration0003.ckpt"
    again, _ = run_guarded(tmp_path / "again", entropies, ["roll_back"], 5, saved)
    assert len(again.ended) == 1
    assert equal(again.ended[-1], seen.ended[-1])


@pytest.mark.slow
@pytest.mark.distributed
def test_two_sharded_ranks_go_back_together_as_rank_zero_decides(tmp_path):
    found = run_ranks(train_on_ranks, tmp_path)
    for begun, ended, moments, acts in found:
        check_rolled_back(begun, ended, moments)
        assert acts == [0, 0, 0, 4, 0] or acts == []  # rank zero logs
    assert found[0][3]


@pytest.mark.slow
def test_a_run_that_stays_alarming_rolls_back_as_often_as_it_may_and_then_stops(tmp_path):
    entropies = [CALM, CALM, CALM] + [HIGH] * 20
    seen, run = run_guarded(tmp_path, entropies, ["roll_back", "roll_back", "stop"], 12)
    assert run.logger.values("guard/act") == [0, 0, 0, 4, 4, 5]
    assert equal(seen.ended[4], seen.ended[1])  # the same checkpoint or its copy: nothing since was calm
    assert run.trainer.current_epoch == 6


@pytest.mark.slow
def test_without_a_good_checkpoint_nothing_is_rolled_back(tmp_path, caplog):
    seen, _ = run_guarded(tmp_path, [CALM, HIGH, CALM], ["roll_back"], 3)
    assert "there is no checkpoint of before" in caplog.text
    assert not equal(seen.ended[1], seen.ended[0])


@pytest.mark.slow
def test_overlapped_rollouts_of_weights_that_were_replaced_are_not_trained_on(tmp_path):
    entropies = [CALM, CALM, CALM, HIGH, CALM]
    callbacks = [
        SetMetrics(entropy=entropies, reward=[0.2]),
        EntropyGuard(LIMITS, GuardSettings(acts=["roll_back"])),
        AtomicCheckpoint(tmp_path / "checkpoints", every_n_epochs=1),
    ]
    run, recorder = overlapped_run(tmp_path, callbacks=callbacks, max_epochs=6)
    run.fit()
    assert run.logger.values("guard/act") == [0, 0, 0, 4, 0, 0]
    # Each iteration trains on trees of the weights of the one before, but the first one after the replacement does not.
    assert recorder.versions == [{0}, {0}, {2}, {4}, {8}, {8}]


def test_the_checkpoint_that_may_be_needed_stays_beside_the_newest(tmp_path):
    saver = AtomicCheckpoint(tmp_path, keep=2)
    saver.kept_iteration = 1
    for number in range(6):
        partial_file = tmp_path / f"iteration{number:04d}.ckpt.partial"
        partial_file.write_text("x")
        saver._finish(partial_file, tmp_path / f"iteration{number:04d}.ckpt")
    assert sorted(saver.saved_iterations()) == [1, 4, 5]


def test_a_damaged_checkpoint_is_refused_before_anything_is_changed(tmp_path):
    path = tmp_path / "iteration0001.ckpt"
    path.write_text("no checkpoint")
    run = make_run(tmp_path)
    with pytest.raises(DataError, match="must be a whole part"):
        take_back(run.trainer, path)
