"""The plan of a run beside what update and embedded engine really allocate, for 1, 8, 16 and 64 ranks.

    python -m benchmarks.plan [--full]

Small models run two optimiser steps of two micro-batches in this process, as rank 0 of N: real networks, real sharding
(FSDP2), real loss and AdamW; collectives move nothing. Every storage of every tensor is counted
(`benchmarks/support/memory_meter.py`), and the second step's peak is compared with the plan's, in total and by part.
Qwen3-14B runs its own recipe (micro-batches of 16,384 tokens, bfloat16, checkpointing) on fake tensors, which have
shapes only: with 4 of its 40 layers and an eighth of its vocabulary, or whole with `--full`. SmolLM2-135M runs
whole, as `model=smollm2` sets it. The embedded engine generates with a few layers of the same model, and its largest
number of bytes is compared with the plan's. Where there is a GPU, one more model runs there and is compared with the
peak of torch's allocator.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose, initialize_config_module

from aepo_lightning.app.command import CONFIG_MODULE, CONFIG_NAME
from aepo_lightning.app.plan.engine_memory import engine_memory
from aepo_lightning.app.plan.from_config import plan_input
from aepo_lightning.app.plan.input import PlanInput
from aepo_lightning.app.plan.model_size import model_size
from aepo_lightning.app.plan.update_memory import UpdateMemory
from benchmarks.support.common import print_result
from benchmarks.support.measured_engine import LOAD_KEYS, EngineLoad, measure_engine
from benchmarks.support.measured_update import NUM_MICRO_BATCHES, Measured, measure, measure_on_gpu
from benchmarks.support.memory_meter import PARTS

RANKS = (1, 8, 16, 64)
GOAL = 0.1
SMALL = {
    "model_type": "qwen3",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "vocab_size": 4096,
    "tie_word_embeddings": False,
}
CASES: Mapping[str, Mapping[str, Any]] = {
    "bf16, checkpointed": {},
    "bf16, all saved": {"is_checkpointed": False},
    "fp32, checkpointed": {"is_mixed_precision": False},
    "tied, tree packing": {"tie_word_embeddings": True, "packing": "tree"},
    "reference, deferred": {"has_reference": True, "is_gradient_sync_deferred": True},
    "LoRA": {"adapter_rank": 8},
    "large vocabulary": {"vocab_size": 32768, "micro_batch_tokens": 512},
    "Llama, 4 of 4 heads": {"model_type": "llama", "num_key_value_heads": 4},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Plan and measurement of one run."""

    name: str
    settings: PlanInput
    measured: Measured

    @property
    def planned_parts(self) -> dict[str, int]:
        """Bytes of the plan's largest moment under the meter's names."""
        parts = UpdateMemory(model_size(self.settings.architecture), self.settings).peak().parts
        ours = {name: "optimiser" if name in ("AdamW states", "optimiser workspace") else name for name in parts}
        ours |= {"reference model": "weights"}
        found = dict.fromkeys(PARTS, 0)
        for name, num_bytes in parts.items():
            found[ours[name]] += num_bytes
        return found

    @property
    def planned_bytes(self) -> int:
        """Bytes of the plan's largest moment."""
        return sum(self.planned_parts.values())

    @property
    def difference(self) -> float:
        """Of the plan, relative to the measurement."""
        return self.planned_bytes / self.measured.peak_bytes - 1


def make_settings(num_ranks: int, **changes: Any) -> PlanInput:
    """Return a run on CPU ranks, each with two full micro-batches in a step; unknown fields are the architecture's."""
    own = {name: value for name, value in changes.items() if name in PlanInput.__dataclass_fields__}
    architecture = SMALL | {name: value for name, value in changes.items() if name not in own}
    defaults: dict[str, Any] = {
        "architecture": architecture,
        "num_gpus": num_ranks,
        "num_iterations": 1,
        "questions_per_iteration": NUM_MICRO_BATCHES * num_ranks,
        "group_size": 2,
        "questions_per_step": NUM_MICRO_BATCHES * num_ranks,
        "max_prompt_tokens": 128,
        "max_response_tokens": 384,
        "micro_batch_tokens": 1024,
        "logprob_chunk_tokens": 128,
        "is_gpu": False,
        "is_pretrained": False,
        "engine_memory_fraction": 0.0,
        "engine_workspace_gib": 0.0,
        "overhead_gib": 0.0,
    }
    return PlanInput(**(defaults | own))


def recipe(num_ranks: int, *, is_full: bool) -> PlanInput:
    """Return the update of conf/experiment/aepo_qwen3_14b.yaml, of the whole model or of a short one."""
    path = Path(__file__).parents[1] / "conf" / "model" / "qwen3_14b.yaml"
    architecture = yaml.safe_load(path.read_text(encoding="utf-8"))["architecture"]
    if not is_full:
        architecture |= {"num_hidden_layers": 4, "vocab_size": 18992}
    return make_settings(
        num_ranks,
        architecture=architecture,
        max_prompt_tokens=2000,
        max_response_tokens=6192,
        micro_batch_tokens=16384,
        logprob_chunk_tokens=512,
    )


def smollm2(**changes: Any) -> PlanInput:
    """Return the update of conf/model/smollm2.yaml in one process."""
    return make_settings(
        1,
        architecture=smollm2_architecture(),
        sharding="none",
        max_prompt_tokens=512,
        max_response_tokens=512,
        micro_batch_tokens=8192,
        logprob_chunk_tokens=1365,
        **changes,
    )


def smollm2_architecture(**changes: Any) -> dict[str, Any]:
    """Return the architecture of SmolLM2-135M, or one that differs from it."""
    path = Path(__file__).parents[1] / "conf" / "model" / "smollm2.yaml"
    return {**yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["architecture"], **changes}


SAMPLING = EngineLoad(
    architecture=smollm2_architecture(num_hidden_layers=2), max_num_seqs=64, max_model_len=16, max_prefill_tokens=16
)
ENGINES: Mapping[str, EngineLoad] = {
    "prompts": replace(
        SAMPLING,
        architecture=smollm2_architecture(num_hidden_layers=6),
        max_num_seqs=4,
        max_model_len=512,
        max_prefill_tokens=2048,
    ),
    "steps": replace(SAMPLING, max_num_seqs=16, max_model_len=256, max_prefill_tokens=256),
    "sampling": SAMPLING,
    "sampling with top-p": replace(SAMPLING, top_p=0.9),
}
"""Loads of the embedded engine by what is largest in them."""


def planned_engine(load: EngineLoad) -> int:
    """Return the bytes that the plan says of the embedded engine while it generates."""
    overrides = [f"engine.{name}={getattr(load, name)}" for name in LOAD_KEYS] + [
        f"rollout.sampling.top_p={load.top_p}"
    ]
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        cfg = compose(CONFIG_NAME, ["model=smollm2", "rollout.sampling.max_response_tokens=1", *overrides])
    cfg.model.architecture = dict(load.architecture)
    settings = plan_input(cfg)
    return engine_memory(model_size(settings.architecture), settings).share_bytes


def compare(name: str, settings: PlanInput, *, is_fake: bool = False) -> Comparison:
    """Carry a run's update out and compare."""
    return Comparison(name=name, settings=settings, measured=measure(settings, is_fake=is_fake))


def _comparisons(is_full: bool) -> Iterator[Comparison]:
    for name, changes in CASES.items():
        for ranks in RANKS:
            yield compare(name, make_settings(ranks, **changes))
    yield compare("one process, not sharded", make_settings(1, sharding="none"))
    for name, is_checkpointed in (("SmolLM2-135M", True), ("SmolLM2-135M, all saved", False)):
        yield compare(name, smollm2(is_checkpointed=is_checkpointed), is_fake=True)
    for ranks in RANKS:
        name = "Qwen3-14B" if is_full else "Qwen3-14B, 4 layers"
        yield compare(name, recipe(ranks, is_full=is_full), is_fake=True)
    if torch.cuda.is_available():
        wide = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 8, "vocab_size": 32768}
        settings = make_settings(1, **wide, micro_batch_tokens=16384, max_response_tokens=3968, is_gpu=True)
        for name, each in (("GPU", settings), ("GPU, all saved", replace(settings, is_checkpointed=False))):
            yield Comparison(name=name, settings=each, measured=measure_on_gpu(each))


def _show(found: Comparison) -> None:
    ranks, planned = found.settings.num_gpus, found.planned_parts
    parts = ", ".join(f"{n} {_mib(found.measured.parts[n])}/{_mib(planned[n])}" for n in PARTS)
    print(
        f"{found.name:26s} {ranks:3d} {_mib(found.measured.peak_bytes):>10s} {_mib(found.planned_bytes):>10s} "
        f"{found.difference:+7.2%}   {parts}",
        flush=True,
    )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f}"


def _figures(measured: int, planned: int) -> dict[str, float]:
    return {
        "measured_mib": round(measured / 2**20, 2),
        "planned_mib": round(planned / 2**20, 2),
        "difference": round(planned / measured - 1, 4),
    }


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the whole Qwen3-14B (many minutes)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'MiB of the peak':26s} {'N':>3s} {'measured':>10s} {'planned':>10s} {'':7s}   parts (measured/planned)")
    found = []
    for each in _comparisons(args.full):
        _show(each)
        found.append(each)
    engines = {name: (measure_engine(load), planned_engine(load)) for name, load in ENGINES.items()}
    for name, (measured, planned) in engines.items():
        change = planned / measured - 1
        print(f"{f'embedded engine, {name}':30s} {_mib(measured):>10s} {_mib(planned):>10s} {change:+7.2%}")
    differences = [each.difference for each in found]
    differences += [planned / measured - 1 for measured, planned in engines.values()]
    worst = max(map(abs, differences))
    figures = {
        f"{each.name} on {each.settings.num_gpus}": _figures(each.measured.peak_bytes, each.planned_bytes)
        for each in found
    }
    figures |= {
        f"embedded engine, {name}": _figures(measured, planned) for name, (measured, planned) in engines.items()
    }
    print_result("plan", figures, {"worst_difference": (round(worst, 4), "<=", GOAL)})


if __name__ == "__main__":
    main()
