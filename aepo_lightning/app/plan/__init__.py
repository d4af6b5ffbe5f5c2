"""`plan=true`: what a run would need and do, worked out without a GPU, a download or a weight.

input.py           the settings that decide it
from_config.py     from a composed configuration to these settings; engine_share.py, of its engine
model_size.py      sizes of the model; spread.py, how they are spread over ranks
update_memory.py   formulas of the update; engine_memory.py and host_memory.py, of the rest
result.py          the plan
advice.py          what to change in a run that does not fit
render.py          the plan as tables
"""

from omegaconf import DictConfig
from rich.console import Console

from aepo_lightning.app.plan.from_config import cold_start_input, plan_input
from aepo_lightning.app.plan.input import PlanInput
from aepo_lightning.app.plan.render import render_cold_start, render_plan
from aepo_lightning.app.plan.result import BatchPlan, Plan, make_plan

__all__ = [
    "BatchPlan",
    "Plan",
    "PlanInput",
    "cold_start_input",
    "make_plan",
    "plan_input",
    "print_plan",
    "render_cold_start",
    "render_plan",
]


def print_plan(cfg: DictConfig) -> None:
    """Print what a run of this configuration would need and do, stage by stage."""
    console = Console()
    if cfg.coldstart.get("data") is not None:
        console.print(render_cold_start(make_plan(cold_start_input(cfg))))
        if cfg.coldstart.only:
            return
    console.print(render_plan(make_plan(plan_input(cfg))))
