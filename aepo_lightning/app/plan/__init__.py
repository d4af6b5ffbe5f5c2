"""`plan=true`: what a run would need and do, worked out without a GPU, a download or a weight.

input.py           the settings that decide it
from_config.py     from a composed configuration to these settings
model_size.py      sizes of the model; spread.py, how they are spread over ranks
update_memory.py   formulas of the update; engine_memory.py and host_memory.py, of the rest
result.py          the plan
advice.py          what to change in a run that does not fit
render.py          the plan as tables
"""

from aepo_lightning.app.plan.input import PlanInput
from aepo_lightning.app.plan.render import render_plan
from aepo_lightning.app.plan.result import BatchPlan, Plan, make_plan

__all__ = ["BatchPlan", "Plan", "PlanInput", "make_plan", "render_plan"]
