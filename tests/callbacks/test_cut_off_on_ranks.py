"""Two ranks of which one is cut off in its rollouts: all save the state before them together, and go on from it."""

import asyncio
import os
import signal
from functools import partial

import pytest
import torch
from typing_extensions import override

from aepo_lightning.callbacks import AtomicCheckpoint, RankGuard
from aepo_lightning.checkpoints import verify_checkpoint
from aepo_lightning.distributed.ranks import CalledBackError
from aepo_lightning.distributed.ranks.signals import ending_on_signals
from aepo_lightning.errors import EngineError, SignalExit
from aepo_lightning.objectives import ImportanceCorrection
from aepo_lightning.policy.publishing.archive import WeightsArchive
from aepo_lightning.policy.publishing.gather import named_weights
from aepo_lightning.rollout import RolloutJournal, RolloutSampler
from aepo_lightning.training.overlap import OverlappedRollouts
from tests.checkpoints.test_on_ranks import strategy_of
from tests.support.ranks import RankDraws, run_ranks
from tests.support.training import make_datamodule, make_module, make_run, small_policy

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

CUT_AT = 2
"""The iteration whose rollouts are cut off."""


class CutWait(OverlappedRollouts):
    """Is told to end when rank 1 begins to wait for the rollout in flight."""

    @override
    def take(self, sampler, order):
        if order.name == f"train-{CUT_AT:05d}-rank1":
            be_told_to_end()
        return super().take(sampler, order)


class CutSampler(RolloutSampler):
    """Ends a rollout in some way; on rank 0 it waits for ever in the same one."""

    how = None

    @override
    async def rollout_async(self, questions, seed, name="rollout", on_tree=None, weights=None):
        if self.how is not None and name.startswith(f"train-{CUT_AT:05d}"):
            if name.endswith("rank1"):
                self.how()
            await asyncio.sleep(10_000)
        return await super().rollout_async(questions, seed, name, on_tree, weights)


def fail():
    raise EngineError("no server is left")


def nothing():
    pass


def be_told_to_end():
    os.kill(os.getpid(), signal.SIGTERM)


def train(rank, folder, strategy, overlap, how=None, ckpt_path=None):
    policy, draws = small_policy(), RankDraws()
    saver = AtomicCheckpoint(folder / "checkpoints", every_n_epochs=10)
    correction = ImportanceCorrection(mode="truncated" if overlap else "none")
    data = {"journal": RolloutJournal(folder / "rollouts"), "weights_archive": WeightsArchive(folder / "weights")}
    optimizer = partial(torch.optim.AdamW, lr=1e-3, eps=1e-5)
    run = make_run(
        folder,
        make_module(policy, optimizer=optimizer, importance_correction=correction),
        make_datamodule(policy, overlap=overlap, **data),
        callbacks=[RankGuard(), draws, saver],
        max_epochs=4,
        devices=2,
        strategy=strategy_of(strategy, 2),
    )
    run.datamodule.sampler.__class__ = CutSampler
    run.datamodule.sampler.how = how
    if overlap and how is be_told_to_end:
        run.datamodule._source.overlap.__class__ = CutWait
        run.datamodule.sampler.how = nothing
    run.fit(ckpt_path)
    return {
        "weights": {name: weight.clone() for name, weight in named_weights(run.network)},
        "losses": run.logger.values("train/loss"),
        "draws": draws.numbers,
    }


def train_until_cut(rank, folder, strategy, overlap, how):
    """Return what this rank ended with."""
    try:
        with ending_on_signals(lambda *_: None):
            train(rank, folder, strategy, overlap, how)
    except (CalledBackError, EngineError, SignalExit) as error:
        return type(error).__name__
    return None


ENDS = {"error": (fail, ["CalledBackError", "EngineError"]), "signal": (be_told_to_end, ["SignalExit", "SignalExit"])}


@pytest.mark.parametrize("overlap", [False, True], ids=["before", "beside"])
@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
@pytest.mark.parametrize(("how", "errors"), ENDS.values(), ids=ENDS)
def test_all_ranks_save_what_was_before_and_go_on_as_if_nothing_had_been(tmp_path, strategy, overlap, how, errors):
    assert run_ranks(train_until_cut, tmp_path, strategy, overlap, how) == errors
    path = tmp_path / "checkpoints" / "iteration0001.ckpt"
    assert verify_checkpoint(path).epoch == CUT_AT - 1
    whole = run_ranks(train, tmp_path / "whole", strategy, overlap)
    again = run_ranks(train, tmp_path, strategy, overlap, None, path)
    for found, expected in zip(again, whole, strict=True):
        assert found["losses"] == expected["losses"][-len(found["losses"]) :]
        assert found["draws"] == expected["draws"][CUT_AT:]
        assert all(torch.equal(found["weights"][name], weight) for name, weight in expected["weights"].items())
