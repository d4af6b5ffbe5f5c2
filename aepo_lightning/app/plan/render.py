"""A plan as tables for a terminal."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from aepo_lightning.app.plan.advice import advise
from aepo_lightning.app.plan.engine_memory import EngineMemory
from aepo_lightning.app.plan.input import PlanInput
from aepo_lightning.app.plan.model_size import BF16, GIB
from aepo_lightning.app.plan.result import Plan
from aepo_lightning.app.plan.spread import Spread

_HOPELESS = "No single change makes it fit: combine smaller models, shorter trajectories, an adapter and more GPUs."


def render_plan(plan: Plan) -> Group:
    """Return the plan as tables for a terminal: memory of device and node, model, engine, batch and the verdict."""
    tables = [_memory_table(plan), *([_host_table(plan)] if plan.host else []), _facts("Model", _model_facts(plan))]
    if plan.engine is not None:
        tables.append(_facts("Engine on each GPU", _engine_facts(plan.engine, plan.settings)))
    tables.append(_facts("Batch", _batch_facts(plan)))
    return Group(*tables, _verdict(plan))


def render_cold_start(plan: Plan) -> Group:
    """Return the plan of a cold start on conversations: memory, model, batch and the verdict."""
    host = [_host_table(plan)] if plan.host else []
    batch = _facts("Batch of the cold start", _cold_start_facts(plan))
    return Group(_memory_table(plan), *host, _facts("Model", _model_facts(plan)), batch, _verdict(plan))


def _cold_start_facts(plan: Plan) -> list[tuple[str, str]]:
    """List the batch arithmetic of a cold start."""
    settings, batch = plan.settings, plan.batch
    return [
        ("conversations of a pass", f"{batch.trajectories_per_iteration:,}"),
        ("passes", f"{settings.num_iterations:,}"),
        ("conversations of an optimiser step", f"{batch.trajectories_per_step:,}"),
        ("optimiser steps, at most", f"{batch.num_steps:,}"),
        ("longest conversation", f"{settings.max_trajectory_tokens:,} tokens"),
        ("micro-batches per step and device, at most", f"{batch.micro_batches_per_step:,}"),
        ("tokens of the largest micro-batch (T)", f"{settings.pass_tokens:,}"),
        ("tokens of a pass, at most", f"{batch.max_tokens_per_iteration:,}"),
    ]


def _gib(num_bytes: int) -> str:
    """Format bytes in GiB, with enough digits for small models."""
    return f"{num_bytes / GIB:.2f}" if num_bytes >= GIB / 100 or num_bytes == 0 else f"{num_bytes / GIB:.2g}"


def _memory_table(plan: Plan) -> Table:
    """Build the table of memory lines with a total."""
    settings = plan.settings
    table = Table(title=f"Memory of each of {settings.devices_name} (GiB)", show_footer=True)
    table.add_column("part", "total")
    table.add_column("update", _gib(plan.update_bytes), justify="right")
    table.add_column("rollout", _gib(plan.rollout_bytes), justify="right")
    table.add_column("bytes are", f"available: {settings.gpu_memory_gib:g}")
    for line in plan.lines:
        table.add_row(line.name, _gib(line.update_bytes), _gib(line.rollout_bytes), line.formula)
    return table


def _host_table(plan: Plan) -> Table:
    """Build the table of host memory with a total."""
    ranks = min(plan.settings.gpus_per_node, plan.settings.num_gpus)
    table = Table(title=f"Host memory of each node with {ranks} ranks (GiB)", show_footer=True)
    table.add_column("part", "total")
    table.add_column("at most", _gib(plan.host_bytes), justify="right")
    table.add_column("bytes are")
    for line in plan.host:
        table.add_row(line.name, _gib(line.num_bytes), line.formula)
    return table


def _facts(title: str, facts: list[tuple[str, str]]) -> Table:
    """Build a two-column table of names and values."""
    table = Table(title=title, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for name, value in facts:
        table.add_row(name, value)
    return table


def _model_facts(plan: Plan) -> list[tuple[str, str]]:
    """List the parameter counts."""
    size, spread = plan.size, Spread(plan.size, plan.settings)
    return [
        ("parameters (P)", f"{size.num_parameters:,}"),
        ("of these embedding and head", f"{size.num_embedding_parameters:,}"),
        ("outside the layers (R)", f"{size.num_root_parameters:,}"),
        ("in each layer (L)", f"{size.num_layer_parameters:,}"),
        ("layers (n)", f"{size.num_layers}"),
        ("saved by one layer per token (A)", f"{spread.saved_bytes_per_token():,} bytes"),
        ("bytes of a weight (w), and in computing (b)", f"{spread.weight}, {spread.width}"),
        ("trained parameters on each rank", f"{spread.trained_shard():,}"),
    ]


def _engine_facts(engine: EngineMemory, settings: PlanInput) -> list[tuple[str, str]]:
    """List how the engine's share is spent."""
    return [
        ("share while awake", f"{_gib(engine.share_bytes)} GiB"),
        (f"weights ({'bf16' if settings.engine_number_bytes == BF16 else 'fp32'})", f"{_gib(engine.weight_bytes)} GiB"),
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
    """Say whether the run fits, what is largest, and what would make it fit."""
    moment = f" ({plan.update.name})" if plan.peak_phase == "update" else ""
    largest = f"largest part: {plan.largest_line.name}."
    peak = f"Peak {_gib(plan.peak_bytes)} GiB in the {plan.peak_phase}{moment}; {largest}"
    if plan.fits:
        return Text(f"Fits. {peak}", style="green")
    advice = advise(plan)
    changes = ["It would fit with one of:", *(f"  {each}" for each in advice)] if advice else [_HOPELESS]
    return Text("\n".join(["Does not fit.", peak, *plan.problems, *changes]), style="red")
