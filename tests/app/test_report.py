import io
from pathlib import Path

from rich.console import Console

from aepo_lightning.app.report import RunReport, print_report


def rendered(report):
    console = Console(width=120, file=io.StringIO())
    print_report(report, console)
    return console.file.getvalue()


def test_the_table_shows_before_after_and_where_things_are():
    report = RunReport(
        name="x",
        algorithm="aepo",
        folder=Path("runs/x/now"),
        before={"val/pass@1": 0.25},
        after={"val/pass@1": 0.75},
        training={"rollout/tokens_per_s": 1234.4},
        seconds={"cold start": 1.25, "AEPO": 2.5},
    )
    text = rendered(report)
    for piece in ("0.250", "0.750", "1234", "all stages (s)", "3.8", "tensorboard --logdir runs/x/now"):
        assert piece in text


def test_figures_that_were_not_measured_are_dashes():
    text = rendered(RunReport(name="x", algorithm="grpo", folder=Path("runs/x/now")))
    assert text.count("-") > 6


def test_a_path_stays_in_one_piece_however_long_it_is():
    folder = Path("/runs") / ("long" * 40)
    console = Console(width=80, file=io.StringIO())
    print_report(RunReport(name="quickstart", algorithm="aepo", folder=folder), console)
    text = console.file.getvalue()
    assert f"policy         {folder / 'policy'}" in text.splitlines()
    assert f"entropy curve  {folder / 'checkpoints' / 'entropy.png'}" in text.splitlines()
