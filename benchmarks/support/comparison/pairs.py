"""Whether the two runs of a pair are a pair: both must have begun from one cold start.

Bed and seed name a cold start, but it is made by the code that was there: after a change, or on another machine, the
one of the same name may be another. The held-out evaluation before the training tells them apart, because its questions
and its random numbers are those of the seed, too.
"""

from collections.abc import Iterable

from benchmarks.support.comparison.claims import NOTHING, PASS, PASS_K, Comparison
from benchmarks.support.comparison.runs import Record
from benchmarks.support.comparison.settings import Job
from benchmarks.support.comparison.verdicts import Results, sides

_EVALUATED = (PASS, PASS_K, "val/reward", "val/entropy")

Pair = tuple[Job, Job]


def compared_pairs(results: Results, comparisons: Iterable[Comparison]) -> list[Pair]:
    """Return all pairs of finished runs that the comparisons are made of, each once, in order."""
    found = {
        (Job(bed, treated, seed), Job(bed, control, seed))
        for comparison in comparisons
        if comparison.control != NOTHING
        for bed in comparison.beds
        for seed in results.seeds(bed)
        for treated, control in sides(comparison)
    }
    return sorted(pair for pair in found if all(results.is_done(job) for job in pair))


def unlike_pairs(results: Results, comparisons: Iterable[Comparison]) -> list[Pair]:
    """Return the pairs of `compared_pairs` whose runs began from cold starts that are not the same.

    A pair without a common figure of the evaluation at step 0 is among them.
    """
    pairs = compared_pairs(results, comparisons)
    return [(one, other) for one, other in pairs if not _is_common(results.records[one], results.records[other])]


def _is_common(one: Record, other: Record) -> bool:
    first, second = _at_the_start(one), _at_the_start(other)
    shared = first.keys() & second.keys()
    return bool(shared) and all(first[name] == second[name] for name in shared)


def _at_the_start(record: Record) -> dict[str, float]:
    """Return the figures of the evaluation at step 0."""
    held_out = record["held_out"]
    if not held_out["step"] or held_out["step"][0] != 0:
        return {}
    found = {name: held_out[name][0] for name in _EVALUATED if name in held_out}
    return {name: value for name, value in found.items() if value is not None}
