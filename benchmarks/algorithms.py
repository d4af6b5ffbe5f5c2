"""What AEPO and every other algorithm are worth at equal generated tokens and equal tool calls.

    python -m benchmarks.algorithms --out runs/algorithms [--jobs 2] [--beds stability,sparse] [--algorithms aepo,grpo]
    python -m benchmarks.algorithms --table [FILE] [--docs]
    python -m benchmarks.algorithms --pilot ITERATIONS --out runs/pilot    # what GRPO spends: budgets come from it

Every preset of `conf/algorithm` and every cell of AEPO's factorial is run on three test beds, from cold starts that all
algorithms share. docs/faithfulness.md has the claims, the analysis and its results. The letters of a cell say which of
AEPO's parts are on: M pre-monitoring, P branch penalty, S stop-gradient, A entropy-aware advantage. `aepo` is MPSA, and
`arpo` the cell without any of them.

Each finished run is a line of OUT/results.jsonl. The same command goes on after an interrupt, and makes again what was
in flight, damaged, failed or of another configuration. At its end it writes OUT/algorithms.jsonl.gz, a table and
pictures, which `--table` makes from the committed file alone.
"""

import argparse
import os
import signal
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from transformers.models.qwen3 import modeling_qwen3  # noqa: F401 -- a run's imports, made once for all of them

from aepo_lightning.app.plan import print_plan  # noqa: F401 -- likewise
from benchmarks.support.common import describe_machine
from benchmarks.support.comparison import figures, table
from benchmarks.support.comparison.claims import PASS, PASS_K
from benchmarks.support.comparison.curves import costs
from benchmarks.support.comparison.results import DONE, load, write_compact
from benchmarks.support.comparison.runs import Record
from benchmarks.support.comparison.session import Session
from benchmarks.support.comparison.settings import BEDS, PILOT_SEED, TRIAL, Bed, Job, algorithms, jobs
from benchmarks.support.comparison.verdicts import Results, judge

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "docs" / "data" / "algorithms.jsonl.gz"
DOCUMENT = ROOT / "docs" / "faithfulness.md"
COLUMNS = {
    "iterations": (
        "step",
        "rollout/num_generated_tokens",
        "rollout/num_answered_calls",
        "rollout/reward",
        "train/old_entropy",
        "train/entropy_beyond_high",
        *table.MEASURED.values(),
    ),
    "held_out": ("step", PASS, PASS_K, "val/reward", "val/entropy"),
}
"""Of the committed results."""


def main() -> None:
    """Make what is missing, or only the table."""
    arguments = _parser().parse_args()
    if arguments.table is not None:
        records = _read(arguments.table)
        beds = {**BEDS, **{name: bed for name, bed in TRIAL.items() if any(job.bed == name for job in records)}}
        _show(records, {name: _with_budgets(bed, name, records) for name, bed in beds.items()}, arguments)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and with it every run
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    torch.set_num_threads(1)
    print(describe_machine(), flush=True)
    session = _session(arguments)
    chosen = [name for name in algorithms() if arguments.algorithms is None or name in arguments.algorithms]
    wanted = jobs(arguments.beds, chosen, arguments.seeds)
    if arguments.pilot:
        wanted = [Job(bed, "grpo", PILOT_SEED) for bed in arguments.beds]
    try:
        is_complete = session.run(wanted)
    except KeyboardInterrupt:
        sys.exit("Interrupted. The same command goes on from here.")
    if arguments.pilot:
        _show_spent(session.present(wanted))
    else:
        _show(session.present(wanted), session.beds, arguments)
    if not is_complete:
        sys.exit("Not all runs are there. The same command goes on from here.")


def _session(arguments: argparse.Namespace) -> Session:
    return Session(
        out=arguments.out.resolve(),
        beds={name: _with_words({**BEDS, **TRIAL}[name], arguments) for name in arguments.beds},
        num_side_by_side=arguments.jobs,
        budget_s=arguments.budget,
        say=lambda line: print(line, flush=True),
    )


def _read(path: Path) -> Mapping[Job, Record]:
    """Return the results of a file, and say what of it is left out."""
    records, num_damaged = load(path)
    if num_damaged:
        print(f"{path} has {num_damaged} damaged lines. They are left out.")
    if not records:
        sys.exit(f"{path} must hold results of runs, but has none. Name another file.")
    return records


def _show(records: Mapping[Job, Record], beds: Mapping[str, Bed], arguments: argparse.Namespace) -> None:
    """Print the verdicts, and write table, figures and compact results."""
    results, docs, out = Results(records, beds), arguments.docs, arguments.out
    findings = judge(results)
    print(table.summary(findings))
    out.mkdir(parents=True, exist_ok=True)
    text = table.summary(findings) + "\n" + table.details(results, findings)
    (out / "table.md").write_text(text, encoding="utf-8")
    figures.draw(results, DOCUMENT.parent / "figures" if docs else out)
    target = COMMITTED if docs else out / COMMITTED.name
    target.parent.mkdir(parents=True, exist_ok=True)
    write_compact(target, records.values(), COLUMNS)
    if docs:
        table.write_into(DOCUMENT, results)


def _show_spent(records: Mapping[Job, Record]) -> None:
    """Print what runs have spent."""
    for job, record in records.items():
        if record["status"] == DONE:
            tokens, calls = (costs(record, unit).sum() for unit in ("tokens", "calls"))
            print(f"{job.bed}: {tokens:.0f} generated tokens, {calls:.0f} answered calls, {record['seconds']:.0f} s")


def _with_budgets(bed: Bed, name: str, records: Mapping[Job, Record]) -> Bed:
    """Return a bed with the budgets that its runs had."""
    found = {(each["budgets"]["tokens"], each["budgets"]["calls"]) for job, each in records.items() if job.bed == name}
    if len(found) > 1:
        sys.exit(f"All runs on {name} must have the same budgets, but have {sorted(found)}. Analyse them one by one.")
    return bed if not found else replace(bed, num_generated_tokens=min(found)[0], num_answered_calls=min(found)[1])


def _with_words(bed: Bed, arguments: argparse.Namespace) -> Bed:
    if arguments.pilot:
        bed = bed.for_pilot(arguments.pilot)
    return replace(
        bed,
        num_generated_tokens=arguments.tokens or bed.num_generated_tokens,
        num_answered_calls=bed.num_answered_calls if arguments.calls is None else arguments.calls,
        words=(*bed.words, *arguments.words),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/algorithms"), help="folder of everything that is made")
    parser.add_argument(
        "--beds",
        type=_names([*BEDS, *TRIAL]),
        default=list(BEDS),
        help=f"of {','.join([*BEDS, *TRIAL])}; default: the three of the claims",
    )
    parser.add_argument("--algorithms", type=_names(algorithms()), help="default: all")
    parser.add_argument(
        "--seeds", type=int, help="of every algorithm; default: ten of those that claims are about, else five"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side, of one thread each")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds for the whole command")
    parser.add_argument("--tokens", type=int, help="budget of generated tokens of a run, in place of the bed's")
    parser.add_argument("--calls", type=int, help="budget of tool calls of a run, in place of the bed's")
    parser.add_argument(
        "--table", type=Path, nargs="?", const=COMMITTED, help="only analyse results (default: committed)"
    )
    parser.add_argument("--docs", action="store_true", help="write table, figures and compact results into docs/")
    parser.add_argument("--pilot", type=int, help="iterations of GRPO on each bed, whose cost is printed")
    parser.add_argument("words", nargs="*", help="further words for train.py, such as data.num_val_questions=16")
    return parser


def _names(known: Collection[str]):  # noqa: ANN202
    def read(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if unknown := sorted(set(names) - {*known}):
            raise argparse.ArgumentTypeError(f"must be among {', '.join(known)}, but got {', '.join(unknown)}.")
        return names

    return read


if __name__ == "__main__":
    main()
