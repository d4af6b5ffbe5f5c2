"""Two FSDP2 ranks do what one process does: same questions, same losses, same weights, same metrics."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from typing_extensions import override

from aepo_lightning.advantages import EntropyShaping, GroupZScore
from aepo_lightning.errors import TrainingError
from aepo_lightning.objectives import KLPenalty
from aepo_lightning.policy.publishing.check import PublicationCheck
from aepo_lightning.policy.publishing.gather import named_weights
from aepo_lightning.policy.publishing.publish import publish
from tests.support.ranks import run_ranks
from tests.support.slow import quick
from tests.support.training import (
    FixedData,
    WordCountReward,
    build_experience,
    built_module,
    experience_builder,
    flat,
    make_datamodule,
    make_module,
    make_run,
    random_trees,
    small_policy,
)

pytestmark = pytest.mark.distributed


class StepRecorder(Callback):
    """The questions of every optimiser step, the trees of every iteration, and the weights that the engine got."""

    def __init__(self):
        self.steps = []
        self.trees = {}
        self.published = []
        self.num_empty = 0

    @override
    def on_train_epoch_start(self, trainer, pl_module):
        engine = trainer.datamodule.engine
        self.published.append(flat(engine._model.parameters()))
        for tree in trainer.datamodule.trees:
            self.trees[tree.question.question_id] = [path.token_ids for path in tree.trajectories()], tree.rewards

    @override
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        groups = {int(g) for micro in batch.micro_batches for g in micro.group_index}
        ids = [trainer.datamodule.trees[group].question.question_id for group in groups - {-1}]
        self.steps.append((ids, len(batch.micro_batches), batch.global_num_tokens, batch.global_num_sequences))
        self.num_empty += -1 in groups


class OneSidedReward(WordCountReward):
    """Gives every trajectory of an odd question the same, so that dropping such groups leaves rank 1 without rows."""

    async def __call__(self, sample):
        found = await super().__call__(sample)
        index, _, is_trained = sample.question.question_id.partition(":")
        return replace(found, reward=1.0) if is_trained and int(index) % 2 else found


def strategy_of(name):
    if name == "fsdp":
        return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    return DDPStrategy(process_group_backend="gloo") if name == "ddp" else "auto"


def train(
    rank, folder, strategy="auto", max_epochs=2, ckpt_path=None, is_tied=True, experience=None, reward=None, **options
):
    """Iterations of two optimiser steps on four questions, validated before, after every second and after the last."""
    policy = small_policy(tie_word_embeddings=is_tied)
    defaults = {"shaping": EntropyShaping(), "questions_per_step": 2, "max_tokens_per_micro_batch": 48}
    builder = experience_builder(advantage_estimator=GroupZScore(), **(defaults | (experience or {})))
    recorder = StepRecorder()
    # The embedded engine computes in float32 with weights of eight bits, the trainer in bfloat16 throughout.
    checks = {"publication_check": PublicationCheck()} if options.get("mixed_precision") else {}
    given = checks | ({} if reward is None else {"reward": reward})
    datamodule = make_datamodule(policy, experience=builder, questions_per_iteration=4, **given)
    run = make_run(
        folder,
        make_module(policy, optimizer=partial(torch.optim.AdamW, lr=1e-3, eps=1e-5), **options),
        datamodule,
        callbacks=[recorder, ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)],
        max_epochs=max_epochs,
        devices=1 if strategy == "auto" else 2,
        strategy=strategy_of(strategy),
        limit_val_batches=1.0,
        check_val_every_n_epoch=2,
    )
    run.validate().fit(ckpt_path).validate()
    return {
        "logs": run.logger.numbers(),
        "weights": {name: weight.clone() for name, weight in named_weights(run.network)},
        "steps": recorder.steps,
        "trees": recorder.trees,
        "published": recorder.published,
        "num_empty": recorder.num_empty,
        "dtypes": {parameter.dtype for parameter in run.network.parameters()},
        "is_sharded": isinstance(run.network, FSDPModule)
        and all(isinstance(parameter, DTensor) for parameter in run.network.parameters()),
    }


def check_equal(single, ranks):
    first, second = ranks
    assert first["trees"] | second["trees"] == single["trees"]
    for (expected, _, *totals), one, other in zip(single["steps"], first["steps"], second["steps"], strict=True):
        assert sorted(one[0] + other[0]) == sorted(expected)
        assert one[1:] == other[1:]
        assert list(one[2:]) == totals
    compare = partial(pytest.approx, rel=1e-5, abs=1e-5)
    assert [log[:2] for log in first["logs"]] == [log[:2] for log in single["logs"]]
    for (step, name, found), (_, _, expected) in zip(first["logs"], single["logs"], strict=True):
        # How tokens are spread over ranks is the one thing that differs.
        assert found == compare(expected) or name in OF_THE_SPREAD, (step, name)
    for each in ranks:
        assert each["weights"].keys() == single["weights"].keys()
        for name, weight in single["weights"].items():
            torch.testing.assert_close(each["weights"][name], weight, atol=1e-5, rtol=1e-5)
        assert torch.equal(each["published"][0], single["published"][0])
        for found, expected in zip(each["published"], single["published"], strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])


OF_THE_SPREAD = {
    f"experience/{name}" for name in ("num_tokens_run", "padding_share", "micro_batches_per_step", "token_imbalance")
}

CASES = {
    "tied": {},
    "untied, kl and entropy": {"is_tied": False, "kl_penalty": KLPenalty(coefficient=0.1), "entropy_coefficient": 0.01},
    "minibatch scope, one reduction": {
        "experience": {"shaping": EntropyShaping(scope="minibatch"), "drop_zero_variance_groups": True},
        "defer_gradient_sync": True,
        "gradient_checkpointing": True,
    },
    "a rank without rows": {"experience": {"drop_zero_variance_groups": True}, "reward": OneSidedReward()},
}


@pytest.mark.parametrize("options", quick(CASES, "untied, kl and entropy"))
def test_two_fsdp_ranks_equal_one_process(tmp_path, options):
    single = train(0, tmp_path / "single", **options)
    ranks = run_ranks(partial(train, **options), tmp_path / "ranks", "fsdp")
    assert all(each["is_sharded"] for each in ranks)
    assert ("reward" in options) == any(each["num_empty"] for each in ranks)
    check_equal(single, ranks)


@pytest.mark.slow
def test_two_ddp_ranks_equal_one_process(tmp_path):
    check_equal(train(0, tmp_path / "single"), run_ranks(train, tmp_path / "ranks", "ddp"))


@pytest.mark.slow
def test_a_resumed_fsdp_run_equals_one_that_was_never_stopped(tmp_path):
    whole = run_ranks(train, tmp_path, "fsdp", 2)
    resumed = run_ranks(train, tmp_path, "fsdp", 2, tmp_path / "epoch=0.ckpt")
    for found, expected in zip(resumed, whole, strict=True):
        assert found["steps"] == expected["steps"][2:]
        # The first iteration took steps 0 and 1; the evaluation before it is logged at step 0.
        logs = [[log for log in each["logs"] if log[0] >= 2] for each in (found, expected)]
        assert logs[0] == logs[1]
        assert all(torch.equal(found["weights"][name], weight) for name, weight in expected["weights"].items())


def gather(rank, folder, is_tied):
    """What leaves the ranks when the weights double after a forward pass that left the root unit gathered."""
    policy = small_policy(tie_word_embeddings=is_tied)
    run = make_run(
        folder,
        make_module(policy),
        make_datamodule(policy),
        devices=2,
        strategy=strategy_of("fsdp"),
        limit_val_batches=1.0,
    ).validate()
    (batch,) = build_experience(run.module, random_trees(1), questions_per_step=2)[0].micro_batches
    shards = list(run.network.parameters())
    assert all(isinstance(shard, DTensor) for shard in shards), "`score` gives back what it gathered"
    with torch.no_grad():
        run.network(batch.input_ids, batch.response_mask)
        for shard in shards:
            shard.mul_(2)
    engine = run.datamodule.engine
    publish(run.network, engine, version=5)
    return {
        "weights": {name: weight.clone() for name, weight in named_weights(run.network)},
        "published": flat(engine._model.parameters()),
        "versions": engine.versions,
        "is_sharded": all(isinstance(parameter, DTensor) for parameter in run.network.parameters()),
        "logprobs": batch.old_logprobs,
    }


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_gathered_weights_are_bit_equal_to_those_of_one_process(tmp_path, is_tied):
    expected = dict(small_policy(tie_word_embeddings=is_tied).build_model().named_parameters())
    single = built_module(policy=small_policy(tie_word_embeddings=is_tied))
    (batch,) = build_experience(single, random_trees(1))[0].micro_batches
    for found in run_ranks(gather, tmp_path, is_tied):
        assert found["weights"].keys() == expected.keys()
        assert all(torch.equal(found["weights"][name], 2 * expected[name]) for name in expected)
        assert torch.equal(found["published"], flat(2 * weight for weight in expected.values()))
        assert found["versions"] == [0, 5]
        assert found["is_sharded"]
        torch.testing.assert_close(found["logprobs"], batch.old_logprobs, atol=1e-6, rtol=1e-6)


def fit_on_a_bad_batch(rank, folder):
    # The k1 estimate of a token that the reference excludes is infinite, its gradient is not.
    options = {"kl_penalty": KLPenalty(coefficient=0.1, estimator="k1")}
    module = make_module(**options)
    steps = build_experience(built_module(**options), random_trees(1, seed=rank))
    if rank == 1:
        steps[0].micro_batches[0].ref_logprobs.fill_(-torch.inf)
    run = make_run(folder, module, FixedData(steps), devices=2, strategy=strategy_of("ddp"))
    with pytest.raises(TrainingError, match="must be finite"):
        run.fit()
    return flat(run.network.parameters())


def test_every_rank_stops_where_one_has_a_loss_that_is_not_finite(tmp_path):
    initial = flat(small_policy().build_model().parameters())
    assert all(torch.equal(found, initial) for found in run_ranks(fit_on_a_bad_batch, tmp_path))
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == [
        "non_finite_step0_rank0.pt",
        "non_finite_step0_rank1.pt",
    ]


@pytest.mark.slow
def test_mixed_precision_trains_float32_weights_and_publishes_bfloat16(tmp_path):
    single = train(0, tmp_path / "single", max_epochs=1)
    ranks = run_ranks(partial(train, mixed_precision=True), tmp_path / "ranks", "fsdp", 1)
    for each in ranks:
        assert each["dtypes"] == {torch.float32}
        # What is published has the precision that the forward pass computes in.
        assert {weight.dtype for weight in each["weights"].values()} == {torch.bfloat16}
        for name, weight in single["weights"].items():
            # Two AdamW steps of 1e-3 in any direction, and the eight bits of bfloat16.
            torch.testing.assert_close(each["weights"][name].float(), weight, atol=4e-3, rtol=8e-3)
