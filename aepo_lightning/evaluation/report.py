"""An evaluation for readers: tables beside published numbers, JSON, Markdown, and a picture of pass@k."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aepo_lightning.atomic_files import replacing, write_json
from aepo_lightning.errors import DataError
from aepo_lightning.evaluation.benchmark import PublishedScore
from aepo_lightning.evaluation.calibration import Calibration
from aepo_lightning.evaluation.judge_notes import corrected_score, is_of_judge, judge_note
from aepo_lightning.evaluation.results import stamp_to_dict
from aepo_lightning.evaluation.results_file import BenchmarkResults
from aepo_lightning.evaluation.summary import Score, Summary, summarise
from aepo_lightning.evaluation.trust import TrustLimits

REPORT_JSON, REPORT_MARKDOWN, PASS_AT_K = "report.json", "report.md", "pass_at_k.png"
_MOST_COLUMNS, _LONGEST = 6, 160
_HEADLINES = ("pass@1", "accuracy", "f1")
"""Names under which the headline is published."""
_OTHER_VERSION = "! {}: its questions are another version than the known one, so the score is not comparable."
Published = Mapping[str, Sequence[PublishedScore]]
"""By benchmark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text under headings."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    """Each as long as the headings."""
    words: Sequence[str] = ()
    """Headings, beside the first, of columns that are of words and not of numbers."""

    def is_of_words(self, column: int) -> bool:
        """Return whether a column, by its number, is of words."""
        return not column or self.headings[column] in self.words

    def to_markdown(self) -> str:
        """Return the table as Markdown."""
        ruler = [":--" if self.is_of_words(number) else "--:" for number in range(len(self.headings))]
        lines = ["| " + " | ".join(map(_escaped, row)) + " |" for row in (self.headings, ruler, *self.rows)]
        return f"**{self.title}**\n\n" + "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The numbers of an evaluation, with what speaks against them and what others published."""

    runs: Sequence[BenchmarkResults]
    """Those that have results."""
    summaries: Sequence[Summary]
    """Of each of them."""
    unstarted: Sequence[str] = ()
    """Benchmarks without a result so far."""
    limits: TrustLimits = field(default_factory=TrustLimits)
    published: Published = field(default_factory=dict)
    """Only what is to be shown."""
    calibration: Calibration | None = None
    """What labelled answers say of the judge. None if it was not checked."""
    remarks: Sequence[str] = ()
    """What else a reader must know, such as why published numbers are not comparable."""

    @classmethod
    def of(
        cls,
        runs: Sequence[BenchmarkResults],
        limits: TrustLimits | None = None,
        published: Published | None = None,
        calibration: Calibration | None = None,
        remarks: Sequence[str] = (),
    ) -> "Report":
        """Compute the numbers of an evaluation.

        Args:
            runs: Its results on each benchmark.
            limits: Beyond which scores are marked. None is the defaults.
            published: What is to stand beside them.
            calibration: Of the judge that gave the verdicts.
            remarks: What else a reader must know.

        Raises:
            DataError: If there is no result at all.
        """
        present = [run for run in runs if run.results]
        if not present:
            names = ", ".join(run.name for run in runs)
            raise DataError(f"An evaluation must have a result to be shown, but got none of {names}. Let it run on.")
        return cls(
            runs=present,
            summaries=[summarise(run.stamp, run.results) for run in present],
            unstarted=[run.name for run in runs if not run.results],
            limits=limits or TrustLimits(),
            published=published or {},
            calibration=calibration,
            remarks=remarks,
        )

    def check(self) -> None:
        """Refuse the evaluation if a score of it would be marked.

        Raises:
            DataError: If there is a doubt; all are named.
        """
        doubts = [f"  {name}: {doubt}" for name, found in self.doubts.items() for doubt in found]
        if doubts:
            raise DataError(
                "Scores must rest on trajectories that were made, served and judged, but:\n" + "\n".join(doubts) + "\n"
                "Mend the cause, then go on with the evaluation, or have what no judge scored judged by `aepo-eval "
                "rejudge`; or leave out --strict."
            )

    @property
    def doubts(self) -> dict[str, list[str]]:
        """Why scores should not be trusted as they stand, by benchmark."""
        found = {summary.benchmark: self.limits.doubts(summary) for summary in self.summaries}
        found |= {name: ["no trajectory is there yet"] for name in self.unstarted}
        return {name: doubts for name, doubts in found.items() if doubts}

    @property
    def notes(self) -> list[str]:
        """What a reader must know beside the tables: doubts, who judged, and where published numbers come from."""
        found = [f"! {name}: {doubt}." for name, doubts in self.doubts.items() for doubt in doubts]
        found += [_OTHER_VERSION.format(run.name) for run in self.runs if run.stamp.is_other_version]
        found += self.remarks
        found += [f"{run.name}: verdicts by {_described(run.stamp.checker)}." for run in self.runs]
        found += [judge_note(self.calibration, run) for run in self.runs if self.calibration is not None]
        shown = [score for summary in self.summaries for score in self.published.get(summary.benchmark, ())]
        sources = dict.fromkeys(f"{each.method}, {each.model}: {each.source}." for each in shown)
        cautions = dict.fromkeys(f"{each.method}, {each.model}: {each.note}." for each in shown if each.note)
        return [*found, *sources, *cautions]

    @property
    def tables(self) -> list[Table]:
        """Scores, what lies behind them, and pass@k against tool calls."""
        return [score_table(self.summaries, self.published), share_table(self.summaries), calls_table(self.summaries)]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            run.name: {
                "summary": asdict(summary),
                "doubts": self.doubts.get(run.name, []),
                "published": [asdict(each) for each in self.published.get(run.name, ())],
                "stamp": stamp_to_dict(run.stamp),
                "judge_check": self._judge_check(run),
            }
            for run, summary in zip(self.runs, self.summaries, strict=True)
        }

    def _judge_check(self, run: BenchmarkResults) -> dict[str, Any] | None:
        if self.calibration is None or not is_of_judge(self.calibration, run.stamp.checker):
            return None
        figures = {"agreement": self.calibration.agreement, "kappa": self.calibration.kappa}
        figures["corrected"] = corrected_score(self.calibration, run)
        return {name: None if each is None else asdict(each) for name, each in figures.items()}

    def to_markdown(self) -> str:
        """Return the tables and the notes as Markdown."""
        notes = "\n".join(f"- {note}" for note in self.notes)
        return "\n\n".join([*(table.to_markdown() for table in self.tables), notes]).rstrip() + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Write `report.json`, `report.md` and `pass_at_k.png`, each whole or not at all, and return their paths."""
        paths = [folder / name for name in (REPORT_JSON, REPORT_MARKDOWN, PASS_AT_K)]
        write_json(paths[0], self.to_dict())
        with replacing(paths[1]) as partial:
            partial.write_text(self.to_markdown(), encoding="utf-8")
        with replacing(paths[2]) as partial:
            draw_pass_at_k(self.summaries).savefig(partial, format="png")
        return paths


def percent(score: Score | None) -> str:
    """Return a score as text in percent, with its interval, and its bounds where verdicts are missing."""
    if score is None or score.value is None:
        return "-"
    text = f"{100 * score.value:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]"  # type: ignore[operator]
    if score.if_wrong == score.if_right:
        return text
    return f"{text} ({100 * score.if_wrong:.1f}..{100 * score.if_right:.1f})"


def score_table(summaries: Sequence[Summary], published: Published) -> Table:
    """Return one row for each benchmark and level, each above the published rows of the same."""
    ks = _shown_ks(summaries)
    rows: list[list[str]] = []
    for summary in summaries:
        size = f"{summary.num_questions} x {summary.num_samples}"
        votes = percent(summary.majority) + (f", {_share(summary.tied_fraction)} tied" if summary.tied_fraction else "")
        columns = [percent(summary.pass_at.get(k)) for k in ks]
        rows.append([f"{summary.benchmark} ({summary.metric})", size, percent(summary.score), *columns, votes])
        rows += _published_rows(published.get(summary.benchmark, ()), "", ks)
        for level, found in summary.levels.items():
            columns = [percent(found.pass_at.get(k)) for k in ks]
            name, size = f"  level {level or '(none)'}", str(found.score.num_questions)
            rows.append([name, size, percent(found.score), *columns, ""])
            rows += _published_rows(published.get(summary.benchmark, ()), level, ks)
    headings = ["benchmark", "questions", "score", *(f"pass@{k}" for k in ks), "maj@n"]
    return Table(title="Scores in percent, with 95 % intervals over questions", headings=headings, rows=rows)


def _shown_ks(summaries: Sequence[Summary]) -> list[int]:
    """Return all k, or if these are many the powers of two and the largest."""
    every = sorted({k for summary in summaries for k in summary.pass_at})
    if len(every) <= _MOST_COLUMNS:
        return every
    return [k for k in every if k & (k - 1) == 0 or k == every[-1]]


def _published_rows(scores: Sequence[PublishedScore], level: str, ks: Sequence[int]) -> list[list[str]]:
    """Return one row for each method and model: pass@1 as the score, others below their k."""
    found: dict[str, dict[str, str]] = {}
    for each in scores:
        if each.level == level:
            metric = "score" if each.metric in _HEADLINES else each.metric
            found.setdefault(f"{each.method}, {each.model}", {})[metric] = f"{each.value:.1f}"
    return [
        [
            f"  published: {name}",
            "",
            values.get("score", ""),
            *(values.get(f"pass@{k}", "") for k in ks),
            "",
        ]
        for name, values in found.items()
    ]


def share_table(summaries: Sequence[Summary]) -> Table:
    """Return what trajectories took, and which shares of them were answered, judged and served."""
    shares_of_all = ("answered", "truncated", "abstained", "failed judge", "unscored", "failed tools", "with tools")
    headings = ("benchmark", *shares_of_all, "calls", "productivity", "tokens", "result tokens")
    rows = []
    for summary in summaries:
        shares, calls = summary.shares, summary.calls
        parts = (shares.answered, shares.truncated, shares.abstained, shares.failed_judge, shares.unscored)
        productivity = "-" if calls.productivity is None else f"{calls.productivity:.1f}"
        rows.append(
            [
                summary.benchmark,
                *(_share(each) for each in (*parts, shares.failed_tools, shares.with_tools)),
                f"{calls.num_calls:.2f}",
                productivity,
                f"{calls.num_generated_tokens:.0f}",
                f"{calls.num_result_tokens:.0f}",
            ]
        )
    return Table(title="Shares of trajectories, and means of what they took", headings=headings, rows=rows)


def calls_table(summaries: Sequence[Summary]) -> Table:
    """Return pass@k where a trajectory counts only if it called tools at most so many times."""
    rows = []
    ks = sorted({k for summary in summaries for at in summary.pass_by_calls.values() for k in at})
    for summary in summaries:
        for limit, found in summary.pass_by_calls.items():
            shown = [f"{100 * found[k]:.1f}" if k in found else "-" for k in ks]
            rows.append([summary.benchmark, str(limit), *shown])
    headings = ["benchmark", "calls up to", *(f"pass@{k}" for k in ks)]
    return Table(title="pass@k in percent within a number of tool calls", headings=headings, rows=rows)


def draw_pass_at_k(summaries: Sequence[Summary]) -> Figure:
    """Draw pass@k of each benchmark over k, with its intervals."""
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for summary in summaries:
        points = [(k, each.value, each.low, each.high) for k, each in summary.pass_at.items() if each.value is not None]
        if points:
            ks, values, lows, highs = zip(*points, strict=True)
            (line,) = axes.plot(ks, values, "o-", label=summary.benchmark, linewidth=1.2, markersize=3)
            axes.fill_between(ks, lows, highs, color=line.get_color(), alpha=0.12)
    axes.set(xlabel="k", ylabel="pass@k", ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize="small")
    return figure


def _described(settings: Mapping[str, Any]) -> str:
    text = ", ".join(f"{name} {value}" for name, value in settings.items()) or "an unnamed checker"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _share(share: float) -> str:
    return f"{100 * share:.1f} %"


def _escaped(text: str) -> str:
    return text.strip().replace("|", "\\|").replace("\n", " ")
