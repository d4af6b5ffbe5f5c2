"""How much of the card's measured matrix peak an update uses, activation checkpointing on."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from aepo_lightning.contracts.batch import Minibatch
from aepo_lightning.objectives import ClippedSurrogate
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.sharding.fsdp2 import clip_gradients
from aepo_lightning.training.loss import PolicyLoss
from benchmarks.plan import make_settings
from benchmarks.support.gpu_case import CaseReport, Setting
from benchmarks.support.gpu_models import (
    architecture,
    build_model,
    copy_bandwidth,
    flops_per_token,
    matrix_peak,
    peak_gib,
    seconds,
    significant,
)
from benchmarks.support.measured_update import make_micro_batch

GOAL = 0.45
LENGTH, MICRO_BATCH = 2048, 16384
MOST_OF_MEMORY = 0.75
"""Share of the card's memory that weights, gradients and AdamW's states may take; beyond it the optimiser is SGD."""
PACKINGS = ("flat", "padded")
NUM_KERNELS = 12
"""Of the profile that are kept."""


class Step:
    """One optimiser step over one full micro-batch whose tokens are all trained."""

    def __init__(self, network: PolicyNetwork, minibatch: Minibatch, *, is_autocast: bool) -> None:
        """Take the parts and choose the optimiser."""
        self.network, self.minibatch = network, minibatch
        self.optimizer = choose_optimizer(network)
        self._loss_of = PolicyLoss(objective=ClippedSurrogate())
        self._is_autocast = is_autocast

    def __call__(self) -> None:
        """Run it."""
        for batch in self.minibatch.micro_batches:
            with self._precision(batch.input_ids.device.type):
                loss, _ = self._loss_of(self.network, batch, self.minibatch)
            loss.backward()
        clip_gradients(self.network, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _precision(self, device: str) -> AbstractContextManager[object]:
        return torch.autocast(device, torch.bfloat16) if self._is_autocast else nullcontext()


def choose_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW, or SGD where there is no room for the states of AdamW."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    num_bytes = 4 * sum(parameter.nbytes for parameter in parameters)
    device = parameters[0].device
    if device.type == "cuda" and num_bytes > MOST_OF_MEMORY * torch.cuda.get_device_properties(device).total_memory:
        return torch.optim.SGD(parameters, lr=1e-6)
    return torch.optim.AdamW(parameters, lr=1e-6, fused=device.type == "cuda")


def make_minibatch(fields: Mapping[str, Any], packing: str, setting: Setting) -> Minibatch:
    """Return one full micro-batch of rows of one length, on-policy."""
    length, tokens = (64, 256) if setting.is_dry else (LENGTH, MICRO_BATCH)
    settings = make_settings(
        1,
        architecture=dict(fields),
        max_prompt_tokens=length // 4,
        max_response_tokens=length - length // 4,
        micro_batch_tokens=tokens,
        packing=packing,
    )
    batch = make_micro_batch(settings)
    batch.old_logprobs = None
    batch.advantages = torch.randn(batch.response_mask.shape, generator=torch.Generator().manual_seed(0))
    count = int(batch.response_mask.sum())
    whole = Minibatch(micro_batches=[batch], global_num_tokens=count, global_num_sequences=len(batch.lengths))
    return whole.to(setting.device)


def measure_update(
    setting: Setting,
    report: CaseReport,
    shape: str,
    dtype: torch.dtype = torch.bfloat16,
    *,
    is_compiled: bool = False,
    has_fused_norms: bool = False,
) -> None:
    """Measure one shape.

    Args:
        setting: Of the case.
        report: Takes the figures.
        shape: Name of a shape.
        dtype: Of the weights; float32 ones compute under bfloat16 autocast.
        is_compiled: Whether `torch.compile` fuses the operations of each layer. Then rows are padded: layers that
            attend over packed rows are not compiled as a whole.
        has_fused_norms: Whether RMS norms are one kernel each, as with `module.fused_norms=true`.
    """
    fields = architecture(shape, is_dry=setting.is_dry)
    peak = matrix_peak(setting.device, 256 if setting.is_dry else 8192)
    report.add({"matrix_peak_tflops": significant(peak / 1e12)})
    network = PolicyNetwork(
        build_model(fields, dtype, setting.device),
        chunk_size=2048,
        gradient_checkpointing=True,
        fused_norms=has_fused_norms,
    ).train()
    if is_compiled:
        for layer in network.model.model.layers:
            layer.compile(backend="eager" if setting.is_dry else "inductor")
    for packing in PACKINGS[is_compiled:]:
        step = Step(network, make_minibatch(fields, packing, setting), is_autocast=dtype == torch.float32)
        length = int(step.minibatch.micro_batches[0].lengths[0])
        tokens = length * len(step.minibatch.micro_batches[0].lengths)
        if setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        took = seconds(step, setting.device, 1 if setting.is_dry else 3)
        share = tokens * flops_per_token(fields, length) / took / peak
        found = {
            "step_s": significant(took),
            "tokens_per_s": significant(tokens / took),
            "model_flops_share_of_peak": significant(share),
            "peak_gib": peak_gib(setting.device),
            "optimizer": type(step.optimizer).__name__,
        }
        is_first = packing == PACKINGS[is_compiled]
        has_goal = is_first and dtype == torch.bfloat16 and not (is_compiled or has_fused_norms)
        report.add({packing: found}, {f"{shape} share of peak": (significant(share), ">=", GOAL)} if has_goal else {})
        if is_first:
            report.add({"largest_kernels": largest_kernels(step)})
        del step


def largest_kernels(step: Step) -> dict[str, float]:
    """Return the share of the time of a step that its largest kernels take, by name."""
    has_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA] if has_gpu else [ProfilerActivity.CPU]) as found:
        step()
    events = [
        (each.key, each.self_device_time_total if has_gpu else each.self_cpu_time_total)
        for each in found.key_averages()
    ]
    total = sum(time for _, time in events) or 1.0
    largest = sorted(events, key=lambda each: -each[1])[:NUM_KERNELS]
    return {name[:110]: round(time / total, 4) for name, time in largest}


def measure_ceilings(setting: Setting, report: CaseReport) -> None:
    """Measure what the card can do at most: products of matrices, and copies."""
    peak = matrix_peak(setting.device, 256 if setting.is_dry else 8192)
    copied = copy_bandwidth(setting.device, 1 << (20 if setting.is_dry else 32))
    name = torch.cuda.get_device_name() if setting.device == "cuda" else "CPU"
    report.add({"device": name, "matrix_tflops": significant(peak / 1e12), "copy_tb_s": significant(copied / 1e12)})
