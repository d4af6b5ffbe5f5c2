"""What every benchmark prints: the machine it ran on, and one JSON line with figures and goals."""

import json
import os
import platform
from collections.abc import Mapping

import torch


def describe_machine() -> str:
    """Return processor, cores, memory and versions in one line."""
    model = platform.processor() or platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {device}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def print_result(name: str, figures: Mapping[str, object], goals: Mapping[str, tuple[float, str, float]]) -> None:
    """Print the closing JSON line.

    Args:
        name: Of the benchmark.
        figures: Everything that was measured.
        goals: For each goal the figure, `<=` or `>=`, and the bound.
    """
    met = {goal: value <= bound if sign == "<=" else value >= bound for goal, (value, sign, bound) in goals.items()}
    listed = {goal: {"figure": value, "bound": f"{sign} {bound}"} for goal, (value, sign, bound) in goals.items()}
    result = {
        "name": name,
        "machine": describe_machine(),
        "figures": dict(figures),
        "goals": listed,
        "goals_met": all(met.values()),
        "goals_missed": [goal for goal, is_met in met.items() if not is_met],
    }
    print(json.dumps(result))
