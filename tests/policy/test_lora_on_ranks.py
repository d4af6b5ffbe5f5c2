"""Adapters on two sharded ranks: trained, published, saved and exported as by one process."""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from aepo_lightning.advantages import GroupZScore
from aepo_lightning.objectives import KLPenalty
from aepo_lightning.policy.hf_folder import FolderWriter
from aepo_lightning.policy.lora import LoRA, is_adapter
from aepo_lightning.policy.publishing.check import PublicationCheck
from aepo_lightning.policy.publishing.gather import low_rank_updates, named_weights, trained_weights
from aepo_lightning.policy.publishing.publish import publish
from aepo_lightning.policy.source import PretrainedPolicy
from tests.support.adapters import merged_by_hand, teach
from tests.support.extras import needs
from tests.support.ranks import run_ranks
from tests.support.slow import quick
from tests.support.training import (
    RecordingEngine,
    experience_builder,
    flat,
    make_datamodule,
    make_module,
    make_run,
    small_policy,
)

pytestmark = pytest.mark.distributed
needs("peft", "lora")

LORA = LoRA(rank=3, alpha=6.0, seed=5)  # three rows of A over two ranks: one has two, the other one


class NotingEngine(RecordingEngine):
    """Remembers what kind of publication came."""

    def load_base(self, weights, adapted, base):
        self.calls = [*getattr(self, "calls", []), "base"]
        super().load_base(weights, adapted, base)

    def load_adapter(self, updates, version):
        self.calls.append("adapter")
        super().load_adapter(updates, version)


def make(folder, world, policy, checks=(), **options):
    checks = dict(checks)
    policy = deepcopy(policy)  # a model sets the attention of its configuration
    engine = NotingEngine(policy, max_num_seqs=16, max_model_len=64)
    builder = experience_builder(
        advantage_estimator=GroupZScore(), questions_per_step=2, max_tokens_per_micro_batch=48, packing="tree"
    )
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if world == 2 else "auto"
    return make_run(
        folder,
        make_module(policy, optimizer=partial(torch.optim.AdamW, lr=1e-2, eps=1e-5), **({"adapter": LORA} | options)),
        make_datamodule(policy, engine=engine, experience=builder, questions_per_iteration=4, **checks),
        devices=world,
        strategy=strategy,
        max_epochs=2,
        limit_val_batches=1.0,
    )


def train(rank, folder, world, policy, **options):
    run = make(folder, world, policy, **options)
    run.validate().fit()
    engine = run.datamodule.engine
    return {
        # How the trees were spread over the ranks is of course not the same.
        "logs": [row for row in run.logger.numbers() if not row[1].startswith("experience/")],
        "weights": {name: weight.clone() for name, weight in named_weights(run.network)},
        "base": {name: p.detach() for name, p in run.network.named_parameters() if world == 1 and not is_adapter(name)},
        "published": flat(engine._model.parameters()),
        "calls": engine.calls,
        "has_reference": bool(run.module._reference),
        "is_sharded": isinstance(run.network, FSDPModule)
        and all(isinstance(parameter, DTensor) for parameter in run.network.parameters()),
    }


CASES = {
    "tied, stored": {},
    "untied, kl, checkpointing": {"kl_penalty": KLPenalty(coefficient=0.1), "gradient_checkpointing": True},
}


@pytest.mark.parametrize("case", quick({name: name for name in CASES}, "tied, stored"))
@pytest.mark.slow
def test_two_ranks_train_the_adapter_that_one_process_trains(tmp_path, case):
    policy = small_policy(tie_word_embeddings=case.startswith("tied"))
    if "stored" in case:  # sharded ranks then read their rows from files, into a skeleton
        FolderWriter(target=tmp_path / "start", source=policy).write_model(policy.build_model().named_parameters())
        policy = PretrainedPolicy(name_or_path=str(tmp_path / "start"))
    single = train(0, tmp_path / "single", 1, policy, **CASES[case])
    first = dict(policy.build_model().named_parameters())
    assert not any(torch.equal(single["weights"][name], first[name]) for name in first if "_proj" in name)
    assert all(torch.equal(single["weights"][name], first[name]) for name in first if "_proj" not in name)
    compare = partial(pytest.approx, rel=1e-5, abs=1e-5)
    for each in run_ranks(partial(train, **CASES[case]), tmp_path / "ranks", 2, policy):
        assert each["is_sharded"]
        assert each["calls"] == single["calls"] == ["base"] + ["adapter"] * 4  # before, in two iterations, after each
        assert not each["has_reference"]
        assert [log[:2] for log in each["logs"]] in ([], [log[:2] for log in single["logs"]])
        for (step, name, found), (_, _, expected) in zip(each["logs"], single["logs"], strict=False):
            assert found == compare(expected), (step, name)
        for name, weight in single["weights"].items():
            torch.testing.assert_close(each["weights"][name], weight, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(each["published"], single["published"], atol=1e-5, rtol=1e-5)


def publish_twice(rank, folder, world, policy, **options):
    """What an engine has after a base with an adapter, and after a second adapter alone."""
    run = make(folder, world, policy, **options).validate()
    engine = run.datamodule.engine
    found = []
    for step in (1, 2):
        teach(run.network, seed=step)
        publish(run.network, engine, step)
        merged = {name: weight.clone() for name, weight in named_weights(run.network)}
        found.append((flat(engine._model.parameters()), merged))
    masters = {name: weight.clone() for name, weight in trained_weights(run.network)}
    updates = [(each.name, each.down.clone(), each.up.clone()) for each in low_rank_updates(run.network)]
    return {"found": found, "calls": engine.calls, "updates": updates, "masters": masters}


def same(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("is_tied", quick({"tied": True, "untied": False}, "tied"))
def test_an_adapter_of_two_ranks_is_published_bit_by_bit_as_by_one_process(tmp_path, is_tied):
    policy = small_policy(tie_word_embeddings=is_tied)
    single = publish_twice(0, tmp_path / "single", 1, policy)
    for each in run_ranks(publish_twice, tmp_path / "ranks", 2, policy):
        assert each["calls"] == single["calls"] == ["base", "adapter", "adapter", "adapter"]
        assert same(each["masters"], single["masters"])
        for (engine, merged), (expected, expected_merged) in zip(each["found"], single["found"], strict=True):
            assert torch.equal(engine, expected)
            assert same(merged, expected_merged)
            assert torch.equal(engine, flat(merged[name] for name in merged_order(policy)))
        for (name, *found), (other, *expected) in zip(each["updates"], single["updates"], strict=True):
            assert name == other
            assert all(map(torch.equal, found, expected))
    assert not torch.equal(single["found"][0][0], single["found"][1][0])


def merged_order(policy):
    return [name for name, _ in policy.build_model().named_parameters()]


def train_coarse(rank, folder, world, policy, **options):
    run = make(folder, world, policy, **options)
    before = {name: parameter.dtype for name, parameter in policy.build_model().named_parameters()}
    run.fit()
    dtypes = {is_adapter(name): parameter.dtype for name, parameter in run.network.named_parameters()}
    published = {name: weight.dtype for name, weight in named_weights(run.network)}
    gaps = run.logger.values("train/sampler_logprob_gap")
    return {"before": set(before.values()), "dtypes": dtypes, "published": set(published.values()), "gaps": gaps}


@pytest.mark.parametrize("mixed_precision", quick({"plain": False, "mixed": True}, "mixed"))
@pytest.mark.slow
def test_float32_adapters_learn_beside_frozen_weights_in_bfloat16(tmp_path, mixed_precision):
    policy = small_policy()
    FolderWriter(target=tmp_path / "start", source=policy).write_model(policy.build_model().named_parameters())
    policy = PretrainedPolicy(name_or_path=str(tmp_path / "start"), dtype="bfloat16")
    job = partial(train_coarse, mixed_precision=mixed_precision, checks={"publication_check": PublicationCheck()})
    first, _ = run_ranks(job, tmp_path / "ranks", 2, policy)
    assert first["before"] == first["published"] == {torch.bfloat16}
    assert first["dtypes"] == {True: torch.float32, False: torch.bfloat16}
    assert all(gap < 0.1 for gap in first["gaps"])  # eight bits, in two implementations


def export(rank, folder, policy):
    run = make(folder / "run", 2, policy).validate()
    teach(run.network)
    weights = trained_weights(run.network)
    if rank == 0:
        FolderWriter(target=folder / "policy", source=policy, shard_bytes=2000).write_model(weights)
    for _ in weights:
        pass
    return {name: weight.clone() for name, weight in named_weights(run.network)}


def test_two_ranks_export_the_merged_policy(tmp_path):
    policy = small_policy()
    expected, _ = run_ranks(export, tmp_path, policy)
    assert len(list((tmp_path / "policy").glob("model-*.safetensors"))) > 5
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32)
    assert same(dict(model.named_parameters()), expected)
    module = make_module(policy, adapter=replace(LORA))
    module.configure_model()
    teach(module.network)
    assert same(merged_by_hand(module.network), expected)
