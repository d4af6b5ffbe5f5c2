"""Runs of the training loop that have ended, in folders as the command leaves them."""

from functools import partial

import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from aepo_lightning.app.saved_config import save_config
from aepo_lightning.callbacks import AtomicCheckpoint
from aepo_lightning.policy.hf_folder import FolderWriter
from aepo_lightning.policy.publishing.gather import named_weights
from aepo_lightning.policy.source import PretrainedPolicy
from tests.support.composed import composed
from tests.support.ranks import run_ranks
from tests.support.training import make_datamodule, make_module, make_run, small_policy


def start(folder, overrides):
    """What stands in the folder of a run before its first iteration."""
    cfg = composed(*overrides)
    folder.mkdir()
    save_config(cfg, folder / "config.yaml")
    policy = small_policy(head_dim=32)  # as small as vLLM's CPU kernels take heads
    FolderWriter(target=folder / "coldstart", source=policy).write_model(policy.build_model().named_parameters())


def train(rank, folder, lora, world):
    """Two iterations; return the weights that the run ends with."""
    policy = PretrainedPolicy(name_or_path=str(folder / "coldstart"))
    run = make_run(
        folder,
        make_module(policy, optimizer=partial(torch.optim.AdamW, lr=1e-2), adapter=lora),
        make_datamodule(policy, questions_per_iteration=2),
        callbacks=[AtomicCheckpoint(folder / "checkpoints", every_n_epochs=1)],
        max_epochs=2,
        devices=world,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if world > 1 else "auto",
    )
    run.fit()
    return {name: weight.clone() for name, weight in named_weights(run.network)}


def finished(folder, overrides, lora=None, world=1):
    start(folder, overrides)
    if world == 1:
        return folder, train(0, folder, lora, 1)
    return folder, run_ranks(train, folder, lora, world)[0]
