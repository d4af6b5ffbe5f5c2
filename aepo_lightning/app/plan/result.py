"""What a plan says: memory of each device and node, batch arithmetic, and whether the run fits."""

import math
from dataclasses import dataclass

from aepo_lightning.app.plan.engine_memory import EngineMemory, engine_memory
from aepo_lightning.app.plan.host_memory import HostLine, host_lines
from aepo_lightning.app.plan.input import PlanInput
from aepo_lightning.app.plan.model_size import GIB, ModelSize, model_size
from aepo_lightning.app.plan.update_memory import (
    ACTIVATIONS,
    BUFFERS,
    GATHERED,
    GRADIENTS,
    HEAD,
    OPTIMISER,
    REFERENCE,
    WEIGHTS,
    WORKSPACE,
    Moment,
    UpdateMemory,
)

ENGINE, OVERHEAD = "engine", "overhead"
FORMULAS = {
    WEIGHTS: "wP/N",
    OPTIMISER: "2wP/N",
    GRADIENTS: "wP/N",
    REFERENCE: "wP/N",
    GATHERED: "b(R + 2L)",
    BUFFERS: "b(head + MLP) + 4L",
    ACTIVATIONS: "T(bhn + A + 2bf + bh)",
    HEAD: "blocks of logits",
    WORKSPACE: "a root of the second moment",
    ENGINE: "weights, cache, workspace",
    OVERHEAD: "contexts, buffers, fragments",
}
"""How the bytes of a line come about, in the symbols of `memory`; each moment has its own variant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLine:
    """One consumer of memory on one device, in each phase of an iteration."""

    name: str
    update_bytes: int
    """At the largest moment of the update."""
    rollout_bytes: int
    formula: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """The batch arithmetic of a run. Token figures are upper bounds: every trajectory at its longest, none shared."""

    trajectories_per_iteration: int
    steps_per_iteration: int
    """Optimiser steps; the last one is smaller if `questions_per_step` does not divide the questions."""
    trajectories_per_step: int
    trajectories_per_step_per_gpu: float
    micro_batches_per_step: int
    """Forward and backward passes of each GPU in one step, at most."""
    num_trajectories: int
    """Of the whole run."""
    num_steps: int
    """Of the whole run."""
    max_tokens_per_iteration: int
    max_response_tokens_per_iteration: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run would need on each device and what it would do."""

    settings: PlanInput
    size: ModelSize
    update: Moment
    """The largest moment of the update, without engine and overhead."""
    lines: tuple[MemoryLine, ...]
    host: tuple[HostLine, ...]
    """Of one node."""
    engine: EngineMemory | None
    """None if generation runs elsewhere."""
    batch: BatchPlan

    @property
    def update_bytes(self) -> int:
        """Bytes on one device at the largest moment of the update."""
        return sum(line.update_bytes for line in self.lines)

    @property
    def rollout_bytes(self) -> int:
        """Bytes on one device while trajectories are generated."""
        return sum(line.rollout_bytes for line in self.lines)

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory on one node."""
        return sum(line.num_bytes for line in self.host)

    @property
    def peak_bytes(self) -> int:
        """Bytes on one device in the larger of the two phases."""
        return max(self.update_bytes, self.rollout_bytes)

    @property
    def peak_phase(self) -> str:
        """`update` or `rollout`, whichever needs more."""
        return "update" if self.update_bytes >= self.rollout_bytes else "rollout"

    @property
    def largest_line(self) -> MemoryLine:
        """The largest consumer in the peak phase."""
        is_update = self.peak_phase == "update"
        return max(self.lines, key=lambda line: line.update_bytes if is_update else line.rollout_bytes)

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the run would not start. Empty if it fits."""
        problems = []
        memory_gib, longest = self.settings.gpu_memory_gib, self.settings.max_trajectory_tokens
        if self.peak_bytes > memory_gib * GIB:
            problems.append(
                f"The {self.peak_phase} needs {self.peak_bytes / GIB:.1f} GiB of the {memory_gib:g} GiB of each "
                f"{self.settings.device_name}. The largest part is {self.largest_line.name}."
            )
        if self.engine is not None and self.engine.kv_tokens < longest:
            problems.append(
                f"The engine's cache holds {self.engine.kv_tokens:,} tokens, but one trajectory may have {longest:,}. "
                "Raise `engine.gpu_memory_utilization` or `engine.tensor_parallel_size`."
            )
        return tuple(problems)

    @property
    def fits(self) -> bool:
        """Whether the run fits on its devices."""
        return not self.problems


def make_plan(settings: PlanInput) -> Plan:
    """Work out memory and batch arithmetic of a run.

    Args:
        settings: The run. The model is built from `settings.architecture` on the meta device.

    Raises:
        ConfigError: If the architecture is unknown.
    """
    return plan_of(model_size(settings.architecture), settings)


def plan_of(size: ModelSize, settings: PlanInput) -> Plan:
    """Work out the plan of a run whose model is measured already."""
    memory = UpdateMemory(size, settings)
    update = memory.peak()
    return Plan(
        settings=settings,
        size=size,
        update=update,
        lines=_lines(memory, update, engine_memory(size, settings)),
        host=host_lines(size, settings),
        engine=engine_memory(size, settings) if settings.has_engine else None,
        batch=_batch_plan(settings),
    )


def _lines(memory: UpdateMemory, update: Moment, engine: EngineMemory) -> tuple[MemoryLine, ...]:
    """Return what fills one device at the peak of the update and in the rollout; unused lines are left out."""
    overhead = round(memory.settings.overhead_gib * GIB)
    during_update = dict(update.parts) | {ENGINE: engine.asleep_bytes, OVERHEAD: overhead}
    during_rollout = memory.resting() | {ENGINE: engine.share_bytes, OVERHEAD: overhead}
    lines = (
        MemoryLine(
            name=name,
            update_bytes=during_update.get(name, 0),
            rollout_bytes=during_rollout.get(name, 0),
            formula=formula,
        )
        for name, formula in FORMULAS.items()
    )
    return tuple(line for line in lines if line.update_bytes or line.rollout_bytes)


def _batch_plan(settings: PlanInput) -> BatchPlan:
    """Do the batch arithmetic."""
    trajectories = settings.questions_per_iteration * settings.group_size
    per_step = settings.questions_per_step * settings.group_size
    steps = settings.num_epochs * math.ceil(settings.questions_per_iteration / settings.questions_per_step)
    return BatchPlan(
        trajectories_per_iteration=trajectories,
        steps_per_iteration=steps,
        trajectories_per_step=per_step,
        trajectories_per_step_per_gpu=per_step / settings.num_gpus,
        micro_batches_per_step=settings.micro_batches_per_step,
        num_trajectories=trajectories * settings.num_iterations,
        num_steps=steps * settings.num_iterations,
        max_tokens_per_iteration=trajectories * settings.max_trajectory_tokens,
        max_response_tokens_per_iteration=trajectories * settings.max_response_tokens,
    )
