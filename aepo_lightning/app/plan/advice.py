"""What to change in a run that does not fit: every change is planned before it is advised."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from aepo_lightning.app.plan.input import PlanInput
from aepo_lightning.app.plan.model_size import GIB
from aepo_lightning.app.plan.result import Plan, plan_of

MOST_GPUS = 1024
_Change = tuple[str, dict[str, Any]]


def advise(plan: Plan) -> tuple[str, ...]:
    """Return changes that would each make the run fit, cheapest first. Empty if it fits, or if nothing helps."""
    if plan.fits:
        return ()
    found = [_describe(text, changed) for text, changed in _single(plan) if changed.fits]
    if not found:
        everything: dict[str, Any] = {}
        for _, change in _free_changes(plan):
            everything |= change
        combined = _with(plan, everything)
        names = ", ".join(text for text, _ in _free_changes(plan))
        found = [_describe(names, combined)] if everything and combined.fits else []
    more = _more_gpus(plan)
    return tuple(found) + ((more,) if more else ())


def _single(plan: Plan) -> Iterator[tuple[str, Plan]]:
    for text, change in (*_free_changes(plan), *_slow_changes(plan.settings)):
        yield text, _with(plan, change)


def _free_changes(plan: Plan) -> Iterator[_Change]:
    """Yield what leaves the policy that is learned as it is, and costs little time."""
    settings, share = plan.settings, _smaller_share(plan)
    if share:
        yield f"`engine.gpu_memory_utilization={share}`", {"engine_memory_fraction": share}
    if not settings.is_checkpointed:
        yield "`module.gradient_checkpointing=true`", {"is_checkpointed": True}
    if settings.is_gradient_sync_deferred:
        yield "`module.defer_gradient_sync=false`", {"is_gradient_sync_deferred": False}
    if settings.is_sharded and not settings.is_mixed_precision:
        yield "`module.mixed_precision=true`", {"is_mixed_precision": True}
    if settings.is_sharded and not settings.is_resharded_after_forward:
        yield "`module.reshard_after_forward=true`", {"is_resharded_after_forward": True}
    if settings.micro_batch_tokens > settings.max_trajectory_tokens:
        fewer = settings.max_trajectory_tokens
        yield f"`experience.max_tokens_per_micro_batch={fewer}`", {"micro_batch_tokens": fewer}
    if settings.sharding in ("replicated", "none") and settings.num_gpus > 1:
        yield "`strategy=fsdp`", {"sharding": "fsdp2"}


def _smaller_share(plan: Plan) -> float | None:
    """Return the largest twentieth of the device that the engine can have in the rollout, if it has more."""
    settings = plan.settings
    if plan.engine is None or not settings.engine_sleeps or plan.peak_phase != "rollout":
        return None
    rest = plan.rollout_bytes - plan.engine.share_bytes
    share = math.floor(20 * (1 - rest / GIB / settings.gpu_memory_gib)) / 20
    return share if 0 < share < settings.engine_memory_fraction else None


def _slow_changes(settings: PlanInput) -> Iterator[_Change]:
    """Yield what costs time, or trains something else."""
    if settings.is_sharded and settings.is_gpu and not settings.is_cpu_offloaded:
        text, change = "`module.cpu_offload=true`", {"is_cpu_offloaded": True}
        if settings.sharding == "fsdp1":  # it offloads gradients that are reduced once a step only
            text, change = f"{text}, `module.defer_gradient_sync=true`", change | {"is_gradient_sync_deferred": True}
        yield f"{text} (slower steps)", change
    if not settings.adapter_rank and settings.sharding != "fsdp1":
        yield "`adapter=lora` (trains low-rank matrices)", {"adapter_rank": 32}


def _more_gpus(plan: Plan) -> str | None:
    """Return the smallest doubling of the GPUs that fits, if there is one."""
    settings, number = plan.settings, plan.settings.num_gpus * 2
    while settings.is_sharded and number <= MOST_GPUS:
        changed = _with(plan, {"num_gpus": number})
        if changed.fits:
            return _describe(changed.settings.devices_name, changed)
        number *= 2
    return None


def _with(plan: Plan, change: dict[str, Any]) -> Plan:
    return plan_of(plan.size, replace(plan.settings, **change))


def _describe(text: str, plan: Plan) -> str:
    host = f", {plan.host_bytes / GIB:.0f} GiB of host memory on each node" if plan.settings.is_cpu_offloaded else ""
    return f"{text}: {plan.peak_bytes / GIB:.1f} GiB in the {plan.peak_phase}{host}"
