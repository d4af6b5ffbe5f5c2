"""Two FSDP2 ranks that read their shards from files train as one process does, offloaded or not."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy

from aepo_lightning.advantages import GroupZScore
from aepo_lightning.objectives import KLPenalty
from aepo_lightning.policy.publishing.check import PublicationCheck
from aepo_lightning.policy.publishing.gather import named_weights
from tests.policy.test_sharded_loading import save
from tests.support.ranks import run_ranks
from tests.support.training import (
    FixedData,
    build_experience,
    built_module,
    experience_builder,
    make_datamodule,
    make_module,
    make_run,
    random_trees,
    relative_l2,
    small_policy,
)

pytestmark = pytest.mark.distributed


def train(rank, folder, policy, devices=1, max_epochs=1, ckpt_path=None, **options):
    """Iterations of two steps on four questions, validated at the end."""
    experience = experience_builder(
        advantage_estimator=GroupZScore(), questions_per_step=2, max_tokens_per_micro_batch=48, packing="tree"
    )
    checks = {"publication_check": PublicationCheck()} if options.get("mixed_precision") else {}
    saving = [ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)]
    run = make_run(
        folder,
        make_module(policy, optimizer=partial(torch.optim.AdamW, lr=1e-3, eps=1e-5), **options),
        make_datamodule(policy, experience=experience, questions_per_iteration=4, **checks),
        callbacks=saving if max_epochs > 1 else [],
        max_epochs=max_epochs,
        devices=devices,
        strategy="auto" if devices == 1 else ModelParallelStrategy(data_parallel_size=devices, tensor_parallel_size=1),
        limit_val_batches=1.0,
    )
    run.fit(ckpt_path).validate()
    return {
        "logs": run.logger.numbers(),
        "weights": {name: weight.clone() for name, weight in named_weights(run.network)},
    }


def check_equal(ranks, single):
    for (step, name, found), (_, _, expected) in zip(ranks[0]["logs"], single["logs"], strict=True):
        # How micro-batches are filled depends on the number of ranks; what is learned from them does not.
        assert name.startswith("experience/") or found == pytest.approx(expected, rel=1e-5, abs=1e-5), (step, name)
    for each in ranks:
        for name, weight in single["weights"].items():
            torch.testing.assert_close(each["weights"][name], weight, atol=1e-5, rtol=1e-5)


OPTIONS = {
    "kl": {"kl_penalty": KLPenalty(coefficient=0.1)},
    "cpu_offload": {"cpu_offload": True, "kl_penalty": KLPenalty(coefficient=0.1), "max_grad_norm": 0.05},
    "no_reshard": {"reshard_after_forward": False, "defer_gradient_sync": True, "max_grad_norm": 0.05},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_training_from_shards_equals_one_process(tmp_path, options):
    policy = save(tmp_path / "model", tie_word_embeddings="kl_penalty" in options)
    single = train(0, tmp_path / "single", policy, **{**options, "cpu_offload": False})
    check_equal(run_ranks(partial(train, **options), tmp_path / "ranks", policy, 2), single)


HEADS = {
    "scaled": {"model_type": "cohere", "logit_scale": 0.3},
    "capped": {"model_type": "gemma3_text", "final_logit_softcapping": 2.0},
    "biased": {"model_type": "phi"},
}


@pytest.mark.slow
@pytest.mark.parametrize("fields", HEADS.values(), ids=HEADS)
def test_heads_that_are_more_than_a_matrix_train_from_shards_as_in_one_process(tmp_path, fields):
    policy = save(tmp_path / "model", **fields)
    expected = train(0, tmp_path / "single", policy)["weights"]
    for each in run_ranks(train, tmp_path / "ranks", policy, 2):
        torch.testing.assert_close(each["weights"], expected, atol=1e-5, rtol=1e-5)
    assert "lm_head.bias" not in expected or expected["lm_head.bias"].any()  # it was zero


@pytest.mark.slow
def test_an_offloaded_run_that_is_resumed_equals_one_that_was_never_stopped(tmp_path):
    policy = save(tmp_path / "model", tie_word_embeddings=True)
    job = partial(train, cpu_offload=True)
    whole = run_ranks(job, tmp_path / "ranks", policy, 2, 2)
    resumed = run_ranks(job, tmp_path / "ranks", policy, 2, 2, tmp_path / "ranks" / "epoch=0.ckpt")
    for found, expected in zip(resumed, whole, strict=True):
        assert all(torch.equal(found["weights"][name], weight) for name, weight in expected["weights"].items())


def move(rank, folder):
    """What stays and what goes when Lightning moves the module to its device."""
    run = make_run(
        folder,
        make_module(cpu_offload=True),
        FixedData(build_experience(built_module(), random_trees(1))),
        devices=1,
        strategy=ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1),
    ).fit()
    module, weight = run.module, next(run.network.parameters())
    assert module.to("meta") is module
    return module.device.type, weight is next(run.network.parameters()), weight.to_local().device.type


def test_offloaded_weights_stay_where_they_are_when_the_module_moves(tmp_path):
    assert run_ranks(move, tmp_path, world=1) == [("meta", True, "cpu")]


def score_packed(rank, folder, policy):
    """Log-probs of the same trees under mixed precision: packed and padded, and the gradients of both."""
    run = make_run(
        folder,
        make_module(policy, mixed_precision=True),
        make_datamodule(policy, publication_check=PublicationCheck()),
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        limit_val_batches=1.0,
    ).validate()
    (batch,) = build_experience(run.module, random_trees(1, seed=rank), packing="tree", questions_per_step=2)[
        0
    ].micro_batches
    run.module.train()
    found = {"batch": (batch.input_ids, batch.response_mask)}
    for name, packed in (("padded", None), ("tree", batch.packed)):
        scores = run.network(batch.input_ids, batch.response_mask, packed=packed)
        scores.logprobs.sum().backward()
        gradients = [parameter.grad for parameter in run.network.parameters()]
        found[name] = {
            "is_packed": packed is not None,
            "logprobs": scores.logprobs.detach(),
            "gradient": torch.cat([gradient.full_tensor().flatten() for gradient in gradients]),
        }
        run.network.zero_grad()
    return found


def test_a_packed_forward_under_mixed_precision_equals_the_padded_one(tmp_path):
    policy = save(tmp_path / "model")
    single = built_module(policy=small_policy())
    for found in run_ranks(score_packed, tmp_path / "ranks", policy):
        padded, tree = found["padded"], found["tree"]
        assert (padded["is_packed"], tree["is_packed"]) == (False, True)
        assert padded["gradient"].dtype == torch.float32
        with torch.no_grad():
            exact = single.network(*found["batch"]).logprobs
        noise = float((padded["logprobs"] - exact).abs().max())
        assert 0 < noise < 0.1  # bfloat16 has eight bits
        torch.testing.assert_close(tree["logprobs"], padded["logprobs"], atol=2 * noise, rtol=0)
        # Each rank's gradient has eight bits, their mean has more.
        assert not torch.equal(padded["gradient"], padded["gradient"].bfloat16().float())
        # The gradient in bfloat16 is off by about 0.02.
        assert relative_l2(tree["gradient"], padded["gradient"]) < 0.05
