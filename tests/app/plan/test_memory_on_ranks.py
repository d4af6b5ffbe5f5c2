"""The plan against two real ranks under Lightning's trainer: the whole optimiser step of the module is counted."""

from functools import partial

import pytest
import torch
from lightning import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from typing_extensions import override

from aepo_lightning.app.plan import make_plan
from aepo_lightning.contracts.batch import Minibatch
from benchmarks.plan import make_settings, smollm2
from benchmarks.support.measured_update import NUM_MICRO_BATCHES, make_micro_batch, make_policy, measure
from benchmarks.support.memory_meter import ACTIVATIONS, OPTIMISER, MemoryMeter
from tests.support.ranks import run_ranks
from tests.support.training import FixedData, make_module, make_run

pytestmark = pytest.mark.distributed


class MeteredStep(Callback):
    """Counts the second optimiser step, which has its states from the first."""

    def __init__(self):
        self.peak_bytes = 0

    @override
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            self._meter = MemoryMeter(pl_module.network)
            (optimizer,) = trainer.optimizers
            states = [value for state in optimizer.state.values() for value in state.values()]
            self._meter.track([each for each in states if isinstance(each, Tensor)], OPTIMISER)
            tensors = [getattr(micro, name) for micro in batch.micro_batches for name in micro.__slots__]
            self._meter.track([each for each in tensors if isinstance(each, Tensor)], ACTIVATIONS)
            self._meter.__enter__()

    @override
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            self._meter.__exit__(None, None, None)
            self.peak_bytes = self._meter.peak_bytes


def train(rank, settings, folder):
    minibatches = [
        Minibatch(
            micro_batches=[make_micro_batch(settings) for _ in range(NUM_MICRO_BATCHES)],
            global_num_tokens=settings.micro_batch_tokens,
            global_num_sequences=1,
        )
        for _ in range(2)
    ]
    metered = MeteredStep()
    module = make_module(
        make_policy(settings),
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        gradient_checkpointing=settings.is_checkpointed,
        logprob_chunk_size=settings.logprob_chunk_tokens,
        mixed_precision=settings.is_mixed_precision,
    )
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if settings.is_sharded else "auto"
    run = make_run(
        folder, module, FixedData(minibatches), callbacks=[metered], devices=settings.num_gpus, strategy=strategy
    )
    run.fit()
    return metered.peak_bytes


def check(peak_bytes, settings):
    planned = make_plan(settings).update.num_bytes
    assert planned == pytest.approx(peak_bytes, rel=0.05)
    # What benchmarks/plan.py measures as one rank of many is what the trainer does.
    assert measure(settings).peak_bytes == pytest.approx(peak_bytes, rel=0.02)


def small(num_ranks, **changes):
    return make_settings(num_ranks, hidden_size=128, intermediate_size=384, vocab_size=1024, **changes)


@pytest.mark.slow
def test_two_ranks_need_what_is_planned(tmp_path):
    settings = small(2)
    peaks = run_ranks(train, settings, tmp_path)
    assert peaks[0] == peaks[1]
    check(peaks[0], settings)


@pytest.mark.slow
def test_one_process_needs_what_is_planned(tmp_path):
    settings = small(1, sharding="none", is_checkpointed=False)
    check(train(0, settings, tmp_path), settings)


@pytest.mark.slow
@pytest.mark.parametrize("is_checkpointed", [True, False])
def test_a_pretrained_model_needs_what_is_planned(is_checkpointed):
    settings = smollm2(is_checkpointed=is_checkpointed)
    assert make_plan(settings).update.num_bytes == pytest.approx(measure(settings, is_fake=True).peak_bytes, rel=0.01)
