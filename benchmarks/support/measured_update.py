"""The update of a planned run, carried out under a memory meter: the real network, sharding, loss and optimiser.

For more ranks than this machine has, torch's "fake" process group makes this process rank 0 of N: sharding runs as it
would, collectives move nothing. Numbers are garbage, sizes are not. With fake tensors even weights take no memory.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from aepo_lightning.app.plan.input import PlanInput
from aepo_lightning.app.plan.model_size import FP32
from aepo_lightning.contracts.batch import Minibatch, TrajectoryBatch
from aepo_lightning.objectives import ClippedSurrogate, KLPenalty
from aepo_lightning.ops.tree_packing import pack_rows
from aepo_lightning.policy.lora import LoRA
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.sharding.builder import NetworkBuilder
from aepo_lightning.policy.sharding.fsdp2 import clip_gradients, gradient_sync
from aepo_lightning.policy.sharding.options import ShardingOptions
from aepo_lightning.policy.tokenizers import build_word_tokenizer
from aepo_lightning.training.loss import PolicyLoss
from benchmarks.support.memory_meter import GRADIENTS, OPTIMISER, WEIGHTS, MemoryMeter

NUM_MICRO_BATCHES = 2
"""The second finds the gradients of the first, as in any step but the shortest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Bytes of one rank."""

    peak_bytes: int
    parts: dict[str, int]
    """What the peak is made of."""
    resting_bytes: int
    """What is left between optimiser steps."""


@dataclass(frozen=True, kw_only=True)
class RandomPolicy:
    """A policy of a given architecture with random weights; nobody reads its tokens."""

    architecture: Mapping[str, Any]
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    """Where weights are drawn."""

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """One that knows no words."""
        return build_word_tokenizer([])

    @property
    def config(self) -> PretrainedConfig:
        """The configuration of the architecture."""
        fields = dict(self.architecture)
        return AutoConfig.for_model(fields.pop("model_type"), use_cache=False, **fields)

    def build_model(self) -> PreTrainedModel:
        """Return a new model."""
        with torch.device(self.device):
            return AutoModelForCausalLM.from_config(self.config, dtype=self.dtype)

    def find_weights(self) -> None:
        """There are none in files."""


def make_policy(settings: PlanInput) -> RandomPolicy:
    """Return a policy with the planned architecture and precision."""
    dtype = torch.float32 if settings.weight_bytes == FP32 else torch.bfloat16
    return RandomPolicy(architecture=settings.architecture, dtype=dtype)


def make_micro_batch(settings: PlanInput) -> TrajectoryBatch:
    """Return rows of full length that fill a micro-batch; under tree packing they share half of their tokens."""
    length = settings.max_trajectory_tokens
    budget = settings.micro_batch_tokens
    shared = length // 2 if settings.packing == "tree" else 0
    rows = max((budget - shared) // (length - shared), 1)
    numbers = torch.zeros(rows, length - 1)
    mask = torch.ones(rows, length - 1, dtype=torch.bool)
    vocab = settings.architecture["vocab_size"]
    ids = torch.arange(length)[None].repeat(rows, 1) % vocab
    ids[:, shared] = torch.arange(rows) % vocab  # where the paths part
    batch = TrajectoryBatch(
        input_ids=ids,
        lengths=torch.full((rows,), length),
        response_mask=mask,
        sampler_logprobs=numbers,
        sampler_entropies=numbers.clone(),
        group_index=torch.zeros(rows, dtype=torch.long),
        rewards=torch.zeros(rows),
        sequence_advantages=torch.zeros(rows),
        old_logprobs=numbers.clone(),
        old_entropies=numbers.clone(),
        ref_logprobs=numbers.clone() if settings.has_reference else None,
        advantages=numbers.clone(),
    )
    if settings.packing != "padded":
        batch.packed = pack_rows(ids, batch.lengths, mask, shares_prefixes=settings.packing == "tree")
    return batch


def make_builder(settings: PlanInput) -> NetworkBuilder:
    """Return the builder of the planned network."""
    return NetworkBuilder(
        policy=make_policy(settings),
        gradient_checkpointing=settings.is_checkpointed,
        logprob_chunk_size=settings.logprob_chunk_tokens,
        adapter=_adapter(settings),
        sharding=ShardingOptions(
            mixed_precision=settings.is_mixed_precision,
            cpu_offload=settings.is_cpu_offloaded,
            reshard_after_forward=settings.is_resharded_after_forward,
        ),
    )


def _adapter(settings: PlanInput) -> LoRA | None:
    if not settings.adapter_rank:
        return None
    return LoRA(rank=settings.adapter_rank, target_modules=settings.adapter_targets)


def measure_update(settings: PlanInput, mesh: DeviceMesh | None, device: str = "cpu") -> Measured:
    """Run two optimiser steps in this process and measure the second, in which the optimiser has its states."""
    builder = make_builder(settings)
    network = builder.trained(mesh)
    # Parameters that are fake cannot be moved.
    if mesh is None and next(network.parameters()).device.type != torch.device(device).type:
        network.to(device)
    has_copy = settings.has_reference and builder.adapter is None
    reference = builder.reference(mesh) if has_copy else None
    meter = MemoryMeter(network)
    if reference is not None:
        meter.track(reference.parameters(), WEIGHTS)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    with meter:
        minibatch = Minibatch(
            micro_batches=[make_micro_batch(settings).to(device) for _ in range(NUM_MICRO_BATCHES)],
            global_num_tokens=settings.micro_batch_tokens,
            global_num_sequences=1,
        )
        for _ in range(2):
            meter.reset_peak()
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            _step(network, minibatch, optimizer, settings, meter)
    peak_bytes = torch.cuda.max_memory_allocated() if device == "cuda" else meter.peak_bytes
    return Measured(peak_bytes=peak_bytes, parts=meter.peak_parts, resting_bytes=meter.num_bytes)


def _step(
    network: PolicyNetwork,
    minibatch: Minibatch,
    optimizer: torch.optim.Optimizer,
    settings: PlanInput,
    meter: MemoryMeter,
) -> None:
    """Do what `AEPOModule.training_step` does; a test compares the two."""
    loss_of = PolicyLoss(
        objective=ClippedSurrogate(preserve_high=1.0),
        kl_penalty=KLPenalty(coefficient=0.1 if settings.has_reference else 0.0),
    )
    for index, batch in enumerate(minibatch.micro_batches):
        is_last = index + 1 == len(minibatch.micro_batches)
        with gradient_sync(network, is_last or not settings.is_gradient_sync_deferred):
            loss, _ = loss_of(network, batch, minibatch)
            loss.backward()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if isinstance(minibatch.micro_batches[0].input_ids, FakeTensor):
        nn.utils.clip_grad_norm_(trained, 1.0)  # ours reads the norm, and a fake tensor has no value
    else:
        clip_gradients(network, 1.0)
    meter.relabel_peak([p.grad for p in trained if p.grad is not None], GRADIENTS)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    meter.relabel_peak(states, OPTIMISER)
    optimizer.zero_grad()


def make_mesh(num_ranks: int, device: str = "cpu") -> DeviceMesh:
    """Return the mesh that Lightning's strategy makes of all ranks."""
    return init_device_mesh(device, (num_ranks, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))


@contextmanager
def fake_ranks(num_ranks: int) -> Iterator[DeviceMesh]:
    """Make this process rank 0 of `num_ranks` ranks whose collectives move nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=num_ranks)
    try:
        with mock.patch("torch.distributed.all_gather_object", _answer_alone):
            yield make_mesh(num_ranks)
    finally:
        dist.destroy_process_group()


def _answer_alone(objects: list[Any], own: Any, group: Any = None) -> None:
    """Gather objects from ranks that all say the same."""
    del group
    objects[:] = [own] * len(objects)


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Make tensors that have a shape only.

    Under them transformers cannot look whether rows are packed, and would build a mask of all pairs in any case.
    """
    with ExitStack() as stack:
        stack.enter_context(mock.patch("transformers.masking_utils.find_packed_sequence_indices", _find_nothing))
        stack.enter_context(FakeTensorMode())
        yield


def _find_nothing(position_ids: Tensor) -> None:
    """Rows are padded, never packed."""
    del position_ids


def measure(settings: PlanInput, *, is_fake: bool = False) -> Measured:
    """Measure the update of a planned run in this process, as rank 0 of its ranks.

    Args:
        settings: The run; `num_gpus` is the number of ranks.
        is_fake: Whether tensors have shapes only, for models beyond this machine.
    """
    with ExitStack() as stack:
        mesh = None if settings.sharding == "none" else stack.enter_context(fake_ranks(settings.num_gpus))
        if is_fake:
            stack.enter_context(fake_tensors())
        return measure_update(settings, mesh)


def measure_on_gpu(settings: PlanInput) -> Measured:
    """Measure the update of a planned run on one GPU, by what torch's allocator has given out at most."""
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        return measure_update(settings, make_mesh(1, "cuda"), "cuda")
    finally:
        dist.destroy_process_group()
