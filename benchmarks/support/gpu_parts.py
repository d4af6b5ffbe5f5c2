"""What `benchmarks.gpu` measures, in order of worth, each with its time limit in seconds on an H100."""

from functools import partial

import torch

from benchmarks.support.gpu_case import Case
from benchmarks.support.gpu_engine import measure_engine
from benchmarks.support.gpu_jobs import run_main_job, run_search, run_tests
from benchmarks.support.gpu_memory import PLANS, compare_plan, publish_weights
from benchmarks.support.gpu_packing import compare_packings
from benchmarks.support.gpu_scores import compare_scores
from benchmarks.support.gpu_update import measure_ceilings, measure_update

BF16, FP32 = torch.bfloat16, torch.float32

CASES = (
    Case(part="ceilings", name="card", limit_s=30, run=measure_ceilings),
    Case(part="tests", name="gpu", limit_s=120, run=run_tests, is_timed=False),
    Case(part="scores", name="float32", limit_s=90, run=partial(compare_scores, dtype=FP32), is_timed=False),
    Case(part="scores", name="bfloat16", limit_s=90, run=partial(compare_scores, dtype=BF16), is_timed=False),
    Case(
        part="packing",
        name="float32",
        limit_s=100,
        run=partial(compare_packings, dtype=FP32, num_questions=1, num_layers=4),
        is_timed=False,
    ),
    *(
        Case(part="memory", name=name, limit_s=60, run=partial(compare_plan, name=name), is_timed=False)
        for name in PLANS
    ),
    Case(part="update", name="8B", limit_s=60, run=partial(measure_update, shape="8B")),
    Case(part="engine", name="SmolLM2-135M", limit_s=60, run=partial(measure_engine, shape="SmolLM2-135M")),
    Case(
        part="packing",
        name="bfloat16",
        limit_s=90,
        run=partial(compare_packings, dtype=BF16, num_questions=4, num_layers=28),
    ),
    Case(part="update", name="0.6B", limit_s=40, run=partial(measure_update, shape="0.6B")),
    Case(part="update", name="1.7B", limit_s=40, run=partial(measure_update, shape="1.7B")),
    Case(part="publish", name="0.6B", limit_s=30, run=partial(publish_weights, shape="0.6B", dtype=FP32)),
    Case(part="publish", name="8B", limit_s=40, run=partial(publish_weights, shape="8B", dtype=BF16)),
    Case(part="engine", name="Qwen3-0.6B", limit_s=60, run=partial(measure_engine, shape="0.6B")),
    Case(part="update", name="0.6B fp32 weights", limit_s=40, run=partial(measure_update, shape="0.6B", dtype=FP32)),
    Case(
        part="update",
        name="0.6B fused norms",
        limit_s=40,
        run=partial(measure_update, shape="0.6B", has_fused_norms=True),
    ),
    Case(
        part="update",
        name="0.6B compiled",
        limit_s=70,
        run=partial(measure_update, shape="0.6B", is_compiled=True),
    ),
    Case(part="main_job", name="cpu", limit_s=300, run=partial(run_main_job, device="cpu"), is_beside=True),
    Case(part="main_job", name="gpu", limit_s=150, run=partial(run_main_job, device="cuda")),
    Case(part="smollm2_search", name="gpu", limit_s=480, run=run_search),
)
PARTS = tuple(dict.fromkeys(case.part for case in CASES))
