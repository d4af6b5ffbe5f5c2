"""Two FSDP2 ranks do what one process does: same questions, same losses, same weights, same metrics."""

from functools import partial

import pytest
import torch
from lightning import Callback
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from aepo_lightning.advantages import EntropyShaping, GroupZScore
from aepo_lightning.experience import ExperienceBuilder
from aepo_lightning.objectives import ClippedSurrogate, KLPenalty
from aepo_lightning.weights import named_weights
from tests.builders import canonical
from tests.distributed.ranks import run_ranks
from tests.training import flat, make_datamodule, make_module, make_run, small_policy

pytestmark = pytest.mark.distributed


class StepRecorder(Callback):
    """The questions of every optimiser step, the trees of every iteration, and the weights that the engine got."""

    def __init__(self):
        self.steps = []
        self.trees = {}
        self.published = []

    def on_train_epoch_start(self, trainer, pl_module):
        engine = trainer.datamodule.sampler.parts.engine
        self.published.append(flat(engine._model.parameters()))
        for tree in trainer.datamodule.trees:
            self.trees[tree.question.question_id] = canonical(tree)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        groups = sorted({int(g) for micro in batch.micro_batches for g in micro.group_index if g >= 0})
        ids = [trainer.datamodule.trees[group].question.question_id for group in groups]
        self.steps.append((ids, len(batch.micro_batches), batch.global_num_tokens, batch.global_num_sequences))


def strategy_of(name):
    if name == "fsdp":
        return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    return DDPStrategy(process_group_backend="gloo") if name == "ddp" else "auto"


def train(rank, folder, strategy="auto", is_tied=True, experience=None, max_epochs=2, **options):
    """Two iterations of two optimiser steps on four questions, validated at the end."""
    policy = small_policy(tie_word_embeddings=is_tied)
    builder = ExperienceBuilder(
        advantage_estimator=GroupZScore(),
        **{"shaping": EntropyShaping(), "questions_per_step": 2, "max_tokens_per_micro_batch": 48, **(experience or {})},
    )
    recorder = StepRecorder()
    run = make_run(
        folder,
        make_module(policy, optimizer=partial(torch.optim.AdamW, lr=1e-3, eps=1e-5), **options),
        make_datamodule(policy, experience=builder, questions_per_iteration=4),
        callbacks=[recorder],
        max_epochs=max_epochs,
        devices=1 if strategy == "auto" else 2,
        strategy=strategy_of(strategy),
        limit_val_batches=1.0,
        check_val_every_n_epoch=2,
    ).fit()
    weights = {name: weight.clone() for name, weight in named_weights(run.network)}
    return {
        "logs": run.logger.numbers(),
        "weights": weights,
        "steps": recorder.steps,
        "trees": recorder.trees,
        "published": recorder.published,
        "is_sharded": isinstance(run.network, FSDPModule)
        and all(isinstance(parameter, DTensor) for parameter in run.network.parameters()),
    }


def check_equal(single, ranks):
    first, second = ranks
    assert first["trees"].keys() | second["trees"].keys() == single["trees"].keys()
    for step, *parts in zip(single["steps"], first["steps"], second["steps"], strict=True):
        assert sorted(parts[0][0] + parts[1][0]) == sorted(step[0])
        assert parts[0][1:] == parts[1][1:]
        assert parts[0][2:] == step[2:]
    compare = partial(pytest.approx, rel=1e-5, abs=1e-5)
    assert [log[:2] for log in first["logs"]] == [log[:2] for log in single["logs"]]
    for (step, name, found), (_, _, expected) in zip(first["logs"], single["logs"], strict=True):
        assert found == compare(expected), (step, name)
    for each in ranks:
        assert each["weights"].keys() == single["weights"].keys()
        for name, weight in single["weights"].items():
            torch.testing.assert_close(each["weights"][name], weight, atol=1e-5, rtol=1e-5)
        for found, expected in zip(each["published"], single["published"], strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])


CASES = {
    "tied": {},
    "untied, kl and entropy": {"is_tied": False, "kl_penalty": KLPenalty(coefficient=0.1), "entropy_coefficient": 0.01},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_two_fsdp_ranks_equal_one_process(tmp_path, options):
    single = train(0, tmp_path / "single", **options)
    ranks = run_ranks(partial(train, **options), tmp_path / "ranks", "fsdp")
    assert all(each["is_sharded"] for each in ranks)
    check_equal(single, ranks)
