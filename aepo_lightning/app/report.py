"""What a run did, and its closing table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

_ROWS = (
    ("reward", "val/reward", "{:.3f}"),
    ("policy entropy (nats)", "val/entropy", "{:.3f}"),
    ("tool calls per trajectory", "val/num_tool_calls", "{:.2f}"),
    ("format errors", "val/format_error_fraction", "{:.3f}"),
)


@dataclass(slots=True, kw_only=True)
class RunReport:
    """What a run did."""

    name: str
    algorithm: str
    folder: Path
    before: Mapping[str, float] = field(default_factory=dict)
    """Held-out metrics before reinforcement learning, named as in TensorBoard."""
    after: Mapping[str, float] = field(default_factory=dict)
    training: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the last iteration."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each stage."""


def render_report(report: RunReport) -> Group:
    """Return the table of held-out figures before and after, and where everything was written."""
    table = Table(title=f"{report.name} with {report.algorithm}", title_justify="left")
    for heading in ("held out", "before", "after"):
        table.add_column(heading, justify="left" if heading == "held out" else "right")
    rates = sorted({name for name in (*report.before, *report.after) if name.startswith("val/pass@")})
    for label, name, form in (*_ROWS[:1], *((name[4:], name, "{:.3f}") for name in rates), *_ROWS[1:]):
        table.add_row(label, _cell(report.before, name, form), _cell(report.after, name, form))
    table.add_section()
    table.add_row("generated tokens per second", "", _cell(report.training, "rollout/tokens_per_s", "{:.0f}"))
    for stage, seconds in report.seconds.items():
        table.add_row(f"{stage} (s)", "", f"{seconds:.1f}")
    table.add_row("all stages (s)", "", f"{sum(report.seconds.values()):.1f}")
    places = (
        f"TensorBoard    tensorboard --logdir {report.folder}",
        f"checkpoints    {report.folder / 'checkpoints'}",
        f"entropy curve  {report.folder / 'checkpoints' / 'entropy.png'}",
        f"policy         {report.folder / 'policy'}",
    )
    return Group(table, Text("\n".join(places)))


def print_report(report: RunReport, console: Console | None = None) -> None:
    """Print a report with each path in one piece: a terminal wraps lines by itself, and a file need not."""
    (console or Console()).print(render_report(report), soft_wrap=True)


def _cell(values: Mapping[str, float], name: str, form: str) -> str:
    return form.format(values[name]) if name in values else "-"
