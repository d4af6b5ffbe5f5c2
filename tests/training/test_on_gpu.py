"""A training run on one GPU, plain and as the only rank of FSDP2, against the same run on the CPU."""

import os
from functools import partial

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule

from aepo_lightning.objectives import KLPenalty
from aepo_lightning.policy.publishing.check import PublicationCheck
from aepo_lightning.training.module import AEPOModule
from tests.support.training import make_datamodule, make_module, make_run, small_policy

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

ADAM = partial(torch.optim.AdamW, lr=1e-3, eps=1e-5)


@pytest.fixture
def alone(monkeypatch):
    """Whatever a strategy sets up for the ranks of a run is gone afterwards."""
    before = dict(os.environ)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


def train(folder, device, strategy="auto", precision="32-true", check=None, **options):
    """One iteration of two optimiser steps, with rollouts of an engine on the CPU in float32."""
    policy = small_policy(num_attention_heads=2, head_dim=16)
    given = {} if check is None else {"publication_check": check}
    run = make_run(
        folder,
        make_module(policy, optimizer=ADAM, kl_penalty=KLPenalty(coefficient=0.1), **options),
        make_datamodule(policy, questions_per_iteration=4, **given),
        accelerator="gpu" if device == "cuda" else "cpu",
        strategy=strategy,
        precision=precision,
    )
    return run.fit()


def steps_of(run):
    """What the optimiser steps were made of; the iteration that they belong to is the same everywhere."""
    return {(step, name): value for step, name, value in run.logger.numbers() if name.startswith("train/")}


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    return steps_of(train(tmp_path_factory.mktemp("cpu"), "cpu"))


def assert_close(run, expected, close):
    found = steps_of(run)
    assert {"train/loss", "train/grad_norm", "train/entropy"} <= {name for _, name in found}
    assert len({step for step, _ in found}) == 2
    assert found == pytest.approx(expected, rel=close, abs=close)


def test_a_run_on_a_gpu_takes_the_steps_of_one_on_the_cpu(gpu_device, tmp_path, on_cpu, monkeypatch):
    devices, loss = set(), AEPOModule.training_step

    def step(module, *batch):
        devices.add(module.network.model.lm_head.weight.device.type)
        return loss(module, *batch)

    monkeypatch.setattr(AEPOModule, "training_step", step)
    run = train(tmp_path, gpu_device)
    assert devices == {gpu_device}
    assert_close(run, on_cpu, 1e-3)


def test_the_only_rank_of_fsdp2_takes_the_steps_of_one_process(gpu_device, tmp_path, on_cpu, alone):
    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    run = train(tmp_path, gpu_device, strategy)
    assert isinstance(run.network, FSDPModule)
    if gpu_device == "cuda":
        assert torch.distributed.get_backend() == "nccl"
    assert_close(run, on_cpu, 1e-3)


def test_mixed_precision_under_fsdp2_stays_within_the_publication_check(gpu_device, tmp_path, on_cpu, alone):
    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    run = train(tmp_path, gpu_device, strategy, check=PublicationCheck(), mixed_precision=True)
    assert {parameter.dtype for parameter in run.network.parameters()} == {torch.float32}
    # The first loss is a policy gradient over log-probs of eight bits.
    assert_close(run, on_cpu, 0.2)


def test_autocast_to_bfloat16_stays_within_the_publication_check(gpu_device, tmp_path):
    check = PublicationCheck()
    train(tmp_path, gpu_device, precision="bf16-mixed", check=check)
    assert 1e-6 < check.metrics["logprob_gap"] < check.max_logprob_gap
