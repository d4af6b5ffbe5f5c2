"""`plan=true`: what a run would need and do, worked out without a GPU, a download or a weight.

The memory formulas stand in `memory.py`, the settings in `plan_input.py`.
"""

import math
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from aepo_lightning.app.memory import (
    GIB,
    EngineMemory,
    MemoryLine,
    ModelSize,
    engine_memory,
    memory_lines,
    model_size,
)
from aepo_lightning.app.plan_input import PlanInput

__all__ = ["BatchPlan", "Plan", "PlanInput", "make_plan", "render_plan"]


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
    """What a run would need on each GPU and what it would do."""

    settings: PlanInput
    size: ModelSize
    lines: tuple[MemoryLine, ...]
    engine: EngineMemory | None
    """None if generation runs elsewhere."""
    batch: BatchPlan

    @property
    def update_bytes(self) -> int:
        """Bytes on one GPU while the policy is updated."""
        return sum(line.update_bytes for line in self.lines)

    @property
    def rollout_bytes(self) -> int:
        """Bytes on one GPU while trajectories are generated."""
        return sum(line.rollout_bytes for line in self.lines)

    @property
    def peak_bytes(self) -> int:
        """Bytes on one GPU in the larger of the two phases."""
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
        """Why the run would not start, each with what to do. Empty if it fits."""
        problems = []
        memory_gib, longest = self.settings.gpu_memory_gib, self.settings.max_trajectory_tokens
        if self.peak_bytes > memory_gib * GIB:
            problems.append(
                f"The {self.peak_phase} needs {self.peak_bytes / GIB:.1f} GiB of the {memory_gib:g} GiB of each GPU. "
                f"The largest part is {self.largest_line.name}. Use more GPUs or lower what that part depends on."
            )
        if self.engine is not None and self.engine.kv_tokens < longest:
            problems.append(
                f"The engine's cache holds {self.engine.kv_tokens:,} tokens, but one trajectory may have {longest:,}. "
                "Raise `engine_memory_fraction` or `engine_tensor_parallel`."
            )
        return tuple(problems)

    @property
    def fits(self) -> bool:
        """Whether the run fits on its GPUs."""
        return not self.problems


def make_plan(settings: PlanInput) -> Plan:
    """Work out memory and batch arithmetic of a run.

    Args:
        settings: The run. The model is built from `settings.architecture` on the meta device.

    Raises:
        ConfigError: If the architecture is unknown.
    """
    size = model_size(settings.architecture)
    return Plan(
        settings=settings,
        size=size,
        lines=memory_lines(size, settings),
        engine=engine_memory(size, settings) if settings.engine_memory_fraction > 0 else None,
        batch=_batch_plan(settings),
    )


def render_plan(plan: Plan) -> Group:
    """Return the plan as tables for a terminal: model, memory of each GPU, engine, batch and the verdict."""
    tables = [_memory_table(plan), _facts("Model", _model_facts(plan.size))]
    if plan.engine is not None:
        tables.append(_facts("Engine on each GPU", _engine_facts(plan.engine, plan.settings)))
    tables.append(_facts("Batch", _batch_facts(plan)))
    return Group(*tables, _verdict(plan))


def _batch_plan(settings: PlanInput) -> BatchPlan:
    """Do the batch arithmetic."""
    trajectories = settings.questions_per_iteration * settings.group_size
    per_step = settings.questions_per_step * settings.group_size
    steps = math.ceil(settings.questions_per_iteration / settings.questions_per_step)
    rows = max(settings.micro_batch_tokens // settings.max_trajectory_tokens, 1)
    return BatchPlan(
        trajectories_per_iteration=trajectories,
        steps_per_iteration=steps,
        trajectories_per_step=per_step,
        trajectories_per_step_per_gpu=per_step / settings.num_gpus,
        micro_batches_per_step=math.ceil(math.ceil(per_step / settings.num_gpus) / rows),
        num_trajectories=trajectories * settings.num_iterations,
        num_steps=steps * settings.num_iterations,
        max_tokens_per_iteration=trajectories * settings.max_trajectory_tokens,
        max_response_tokens_per_iteration=trajectories * settings.max_response_tokens,
    )


def _gib(num_bytes: int) -> str:
    """Format bytes in GiB, with enough digits for small models."""
    return f"{num_bytes / GIB:.2f}" if num_bytes >= GIB / 100 or num_bytes == 0 else f"{num_bytes / GIB:.2g}"


def _memory_table(plan: Plan) -> Table:
    """Build the table of memory lines with a total."""
    table = Table(title=f"Memory of each of {plan.settings.num_gpus} GPUs (GiB)", show_footer=True)
    table.add_column("part", "total")
    table.add_column("update", _gib(plan.update_bytes), justify="right")
    table.add_column("rollout", _gib(plan.rollout_bytes), justify="right")
    table.add_column("bytes are", f"available: {plan.settings.gpu_memory_gib:g}")
    for line in plan.lines:
        table.add_row(line.name, _gib(line.update_bytes), _gib(line.rollout_bytes), line.formula)
    return table


def _facts(title: str, facts: list[tuple[str, str]]) -> Table:
    """Build a two-column table of names and values."""
    table = Table(title=title, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for name, value in facts:
        table.add_row(name, value)
    return table


def _model_facts(size: ModelSize) -> list[tuple[str, str]]:
    """List the parameter counts."""
    return [
        ("parameters (P)", f"{size.num_parameters:,}"),
        ("of these embedding and head", f"{size.num_embedding_parameters:,}"),
        ("outside the layers (R)", f"{size.num_root_parameters:,}"),
        ("in each layer (L)", f"{size.num_layer_parameters:,}"),
        ("layers (n)", f"{size.num_layers}"),
        ("saved by one layer per token (A)", f"{size.saved_bytes_per_token:,} bytes"),
    ]


def _engine_facts(engine: EngineMemory, settings: PlanInput) -> list[tuple[str, str]]:
    """List how the engine's share is spent."""
    return [
        ("share while awake", f"{_gib(engine.share_bytes)} GiB"),
        ("weights (bf16)", f"{_gib(engine.weight_bytes)} GiB"),
        ("held during the update", f"{_gib(engine.asleep_bytes)} GiB"),
        ("cache per token", f"{engine.kv_bytes_per_token:,} bytes"),
        ("cache holds", f"{engine.kv_tokens:,} tokens"),
        ("longest trajectories at once", f"{engine.kv_tokens // settings.max_trajectory_tokens:,}"),
        ("copies of the engine", f"{settings.num_gpus // settings.engine_tensor_parallel}"),
    ]


def _batch_facts(plan: Plan) -> list[tuple[str, str]]:
    """List the batch arithmetic."""
    settings, batch = plan.settings, plan.batch
    return [
        ("questions per iteration", f"{settings.questions_per_iteration:,}"),
        ("trajectories per question (k)", f"{settings.group_size}"),
        ("trajectories per iteration", f"{batch.trajectories_per_iteration:,}"),
        ("optimiser steps per iteration", f"{batch.steps_per_iteration:,}"),
        ("trajectories per step", f"{batch.trajectories_per_step:,}"),
        ("trajectories per step and GPU", f"{batch.trajectories_per_step_per_gpu:,.4g}"),
        ("micro-batches per step and GPU, at most", f"{batch.micro_batches_per_step:,}"),
        ("tokens of the largest pass (T)", f"{settings.pass_tokens:,}"),
        ("tokens per iteration, at most", f"{batch.max_tokens_per_iteration:,}"),
        ("of these response tokens", f"{batch.max_response_tokens_per_iteration:,}"),
        ("iterations", f"{settings.num_iterations:,}"),
        ("optimiser steps of the run", f"{batch.num_steps:,}"),
        ("trajectories of the run", f"{batch.num_trajectories:,}"),
    ]


def _verdict(plan: Plan) -> Text:
    """Say whether the run fits, and what is largest."""
    peak = f"Peak {_gib(plan.peak_bytes)} GiB in the {plan.peak_phase}; largest part: {plan.largest_line.name}."
    if plan.fits:
        return Text(f"Fits. {peak}", style="green")
    return Text("\n".join(["Does not fit.", peak, *plan.problems]), style="red")
