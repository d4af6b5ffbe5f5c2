"""FSDP1 units on two gloo ranks train as one process does, and give back their weights.

Lightning lets `FSDPStrategy` run on GPUs only. Here its wrapping context is opened with the CPU as device, which is
what the strategy does in `configure_model`; on GPUs nothing of this has been run.
"""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import enable_wrap
from typing_extensions import override

from aepo_lightning.advantages import GroupZScore
from aepo_lightning.errors import DataError
from aepo_lightning.objectives import KLPenalty
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.publishing.gather import named_weights
from aepo_lightning.policy.sharding.builder import NetworkBuilder
from aepo_lightning.policy.sharding.fsdp1 import ExactPrecision, fsdp1_named_weights
from aepo_lightning.policy.sharding.fsdp2 import clip_gradients, gradient_sync, is_sharded, reshard
from aepo_lightning.policy.sharding.options import ShardingOptions
from aepo_lightning.policy.source import PretrainedPolicy
from tests.support.ranks import run_ranks
from tests.support.slow import first_quick
from tests.support.training import (
    build_experience,
    built_module,
    empty_batch,
    experience_builder,
    flat,
    make_datamodule,
    make_module,
    make_run,
    random_trees,
    small_policy,
)

pytestmark = pytest.mark.distributed


@contextmanager
def wrapping():
    """What `FSDPStrategy.model_sharded_context` opens, on the CPU."""
    dist.init_process_group("gloo")
    try:
        with enable_wrap(wrapper_cls=FullyShardedDataParallel, device_id=torch.device("cpu"), use_orig_params=True):
            yield
    finally:
        dist.destroy_process_group()


def save(folder, **fields):
    policy = small_policy(**fields)
    policy.build_model().save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return PretrainedPolicy(name_or_path=str(folder))


def batches(packing="padded"):
    """An even number of micro-batches, the last of them possibly empty."""
    module = built_module(policy=small_policy())
    options = {"questions_per_step": 4, "max_tokens_per_micro_batch": 96, "packing": packing}
    found = build_experience(module, random_trees(4), **options)[0].micro_batches
    return found + [empty_batch()] * (len(found) % 2)


def loss_of(network, batch):
    scores = network(batch.input_ids, batch.response_mask, packed=batch.packed, entropy="grad")
    return (scores.logprobs * batch.old_logprobs).sum() / 100 - 0.1 * scores.entropies.sum() / 100


def update(network, own, num_ranks, is_deferred=False):
    """Two steps over micro-batches; returns losses and gradient norms."""
    found = []
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(2):
        with torch.no_grad():
            network(own[0].input_ids, own[0].response_mask)  # as old log-probs are computed, before every update
        reshard(network)
        for index, batch in enumerate(own):
            with gradient_sync(network, not is_deferred or index + 1 == len(own)):
                loss = loss_of(network, batch)
                (num_ranks * loss).backward()
            found.append(float(loss.detach()))
        found.append(float(clip_gradients(network, 0.05)))
        optimizer.step()
        optimizer.zero_grad()
    return found


def train(rank, policy, options, micro_batches, is_deferred):
    with wrapping():
        builder = NetworkBuilder(policy=policy, sharding=options, gradient_checkpointing=is_deferred)
        network, reference = builder.trained("fsdp1"), builder.reference("fsdp1")
        own = micro_batches[rank::2]
        first = {name: weight.clone() for name, weight in fsdp1_named_weights(network)}
        numbers = update(network, own, num_ranks=2, is_deferred=is_deferred)
        with torch.no_grad():
            scores = reference(own[0].input_ids, own[0].response_mask).logprobs
        return {
            "is_sharded": is_sharded(network),
            "num_local": sum(parameter.numel() for parameter in network.parameters()),
            "numbers": numbers,
            "first": first,
            "weights": {name: weight.clone() for name, weight in fsdp1_named_weights(network)},
            "reference": {name: weight.clone() for name, weight in fsdp1_named_weights(reference)},
            "is_frozen": not any(parameter.requires_grad for parameter in reference.parameters()),
            "scores": scores,
            "buffers": {name: buffer.dtype for name, buffer in network.named_buffers()},
            "names": sorted(name for name, _ in network.named_parameters()),
        }


CASES = {
    "tied, from files": (True, True, "padded", False, ShardingOptions()),
    "untied, scratch, tree": (False, False, "tree", False, ShardingOptions()),
    "one reduction": (True, True, "flat", True, ShardingOptions()),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_two_ranks_equal_one_process(tmp_path, case):
    is_tied, is_stored, packing, is_deferred, options = case
    policy = small_policy(tie_word_embeddings=is_tied)
    stored = save(tmp_path, tie_word_embeddings=is_tied) if is_stored else policy
    micro_batches = batches(packing)
    initial = dict(policy.build_model().named_parameters())
    single = PolicyNetwork(policy.build_model())
    expected = update(single, micro_batches, num_ranks=1)
    for rank, found in enumerate(run_ranks(train, stored, options, micro_batches, is_deferred)):
        assert found["is_sharded"]
        assert found["is_frozen"]
        assert found["num_local"] < 0.6 * sum(weight.numel() for weight in initial.values())
        for weights in (found["first"], found["reference"]):
            assert weights.keys() == initial.keys()
            assert all(torch.equal(weights[name], weight) for name, weight in initial.items())
        trained = {name.removeprefix("model."): weight for name, weight in single.named_parameters()}
        for name, weight in trained.items():
            torch.testing.assert_close(found["weights"][name], weight.detach(), atol=1e-5, rtol=1e-5)
        per_step = len(micro_batches) + 1
        own = [
            n
            for s in range(2)
            for n in [*expected[s * per_step :][rank : per_step - 1 : 2], expected[s * per_step + per_step - 1]]
        ]
        assert found["numbers"] == pytest.approx(own, rel=1e-4, abs=1e-5)


def compute(rank, policy, micro_batches):
    """Log-probs and gradients in mixed precision."""
    with wrapping():
        network = NetworkBuilder(policy=policy, sharding=ShardingOptions(mixed_precision=True)).trained("fsdp1")
        batch = micro_batches[rank]
        scores = network(batch.input_ids, batch.response_mask, packed=batch.packed)
        scores.logprobs.sum().backward()
        gradient = flat(parameter.grad for parameter in network.parameters() if parameter.grad is not None)
        return {
            "logprobs": scores.logprobs.detach(),
            "gradient": gradient,
            "buffers": {buffer.dtype for buffer in network.buffers()},
            "norm": float(clip_gradients(network, 1e9)),
        }


@pytest.mark.parametrize("packing", first_quick(["tree", "padded"]))
def test_mixed_precision_computes_in_bfloat16_and_reduces_in_float32(tmp_path, packing):
    micro_batches = batches(packing)
    single = PolicyNetwork(small_policy().build_model())
    expected = [single(batch.input_ids, batch.response_mask).logprobs for batch in micro_batches[:2]]
    (sum(logprobs.sum() for logprobs in expected) / 2).backward()
    norm = float(clip_gradients(single, 1e9))
    for found, logprobs in zip(run_ranks(compute, save(tmp_path), micro_batches), expected, strict=True):
        assert found["gradient"].dtype == torch.float32
        # Each rank's gradient has eight bits, their mean has more.
        assert not torch.equal(found["gradient"], found["gradient"].bfloat16().float())
        assert found["buffers"] == {torch.float32}
        noise = (found["logprobs"] - logprobs.detach()).abs().max()
        assert 1e-4 < noise < 0.1  # bfloat16 has eight bits
        assert found["norm"] == pytest.approx(norm, rel=0.05)


def change_weights(rank, batch):
    """Log-probs before and after every shard is halved, as loading a checkpoint changes them."""
    with wrapping(), torch.no_grad():
        network = NetworkBuilder(policy=small_policy()).trained("fsdp1")
        before = network(batch.input_ids, batch.response_mask).logprobs
        for parameter in network.parameters():
            parameter.mul_(0.5)
        return before, network(batch.input_ids, batch.response_mask).logprobs


def test_weights_that_change_after_a_pass_without_backward_are_seen_by_the_next():
    (batch, *_) = batches()
    single = PolicyNetwork(small_policy().build_model())
    with torch.no_grad():
        before = single(batch.input_ids, batch.response_mask).logprobs
        for parameter in single.parameters():
            parameter.mul_(0.5)
        after = single(batch.input_ids, batch.response_mask).logprobs
    for found in run_ranks(change_weights, batch):
        torch.testing.assert_close(found, (before, after), atol=1e-5, rtol=1e-5)


def read_broken(rank, policies):
    with wrapping(), pytest.raises(DataError) as error:
        NetworkBuilder(policy=policies[rank]).trained("fsdp1")
    return str(error.value)


def test_a_rank_that_cannot_read_its_weights_stops_all_of_them(tmp_path):
    policies = [save(tmp_path / "0"), save(tmp_path / "1", hidden_size=32)]
    (tmp_path / "1" / "config.json").write_text((tmp_path / "0" / "config.json").read_text())
    found = run_ranks(read_broken, policies)
    assert found[0] == found[1]
    assert "must have the shape" in found[0]


# Lightning -----------------------------------------------------------------------------------------------------------


class CPUStrategy(FSDPStrategy):
    """Lightning's strategy with the CPU as the device of the units."""

    @contextmanager
    @override
    def model_sharded_context(self):
        with enable_wrap(wrapper_cls=FullyShardedDataParallel, device_id=torch.device("cpu"), **self.kwargs):
            yield


def fit(rank, folder, policy, devices=1, strategy="auto", **options):
    """Validated before and after one iteration of two steps on four questions."""
    experience = experience_builder(
        advantage_estimator=GroupZScore(), questions_per_step=2, max_tokens_per_micro_batch=48
    )
    run = make_run(
        folder,
        make_module(policy, optimizer=partial(torch.optim.AdamW, lr=1e-3, eps=1e-5), **options),
        make_datamodule(policy, experience=experience, questions_per_iteration=4),
        devices=devices,
        strategy=strategy,
        limit_val_batches=1.0,
    )
    run.validate().fit().validate()
    engine = run.datamodule.engine
    return {
        "logs": run.logger.numbers(),
        "weights": {name: weight.clone() for name, weight in named_weights(run.network)},
        "published": dict(engine._model.named_parameters()),
        "is_sharded": is_sharded(run.network),
    }


def fit_units(rank, folder, policy, **options):
    return fit(rank, folder, policy, 2, CPUStrategy(precision_plugin=ExactPrecision()), **options)


@pytest.mark.slow
def test_two_ranks_of_the_strategy_equal_one_process(tmp_path):
    policy = save(tmp_path / "model", tie_word_embeddings=True)
    options = {"kl_penalty": KLPenalty(coefficient=0.1), "max_grad_norm": 0.05}
    single = fit(0, tmp_path / "single", policy, **options)
    ranks = run_ranks(partial(fit_units, **options), tmp_path / "ranks", policy)
    for (step, name, found), (_, _, expected) in zip(ranks[0]["logs"], single["logs"], strict=True):
        # How micro-batches are filled depends on the number of ranks; what is learned from them does not.
        assert name.startswith("experience/") or found == pytest.approx(expected, rel=1e-5, abs=1e-5), (step, name)
    for each in ranks:
        assert each["is_sharded"]
        for name, weight in single["weights"].items():
            torch.testing.assert_close(each["weights"][name], weight, atol=1e-5, rtol=1e-5)
            assert torch.equal(each["published"][name], each["weights"][name])
