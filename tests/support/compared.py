"""Results of a comparison as if algorithms had been run."""

from random import Random

from benchmarks.support.comparison.settings import Bed, Job, cells

BEDS = {
    name: Bed(experiment="quickstart", num_generated_tokens=100, num_answered_calls=20)
    for name in ("stability", "sparse", "burst")
}


def make_record(job, start=0.2, end=0.5, entropies=(1.0, 0.9), calls=(10, 10), **changes):
    """A run of two iterations with validations before and after, whose pass@1 goes from `start` to `end`."""
    iterations = {
        "step": [0, 1],
        "rollout/num_generated_tokens": [50, 50],
        "rollout/num_answered_calls": list(calls),
        "train/entropy": list(entropies),
        "rollout/num_distinct_actions": [4.0, 4.0],
        "rollout/branch_concentration": [0.8, 0.8],
        "rollout/expected_branch_concentration": [0.7, 0.7],
        "train/clip_fraction_high": [0.01, 0.03],
        "train/entropy_beyond_high": [None, 1.8],
        "train/old_entropy": [1.0, 0.9],
    }
    held_out = {"step": [0, 2], "val/pass@1": [start, end], "val/pass@4": [start, min(1.0, end + 0.2)]}
    whole = {"bed": job.bed, "algorithm": job.algorithm, "seed": job.seed, "status": "done", "configuration": "c"}
    whole |= {"code": "d", "budgets": {"tokens": 100, "calls": 20}}
    return whole | {"seconds": 36.0, "iterations": iterations, "held_out": held_out} | changes


def noise(job):
    """A number near zero that differs between runs."""
    return Random(job.name).uniform(-0.005, 0.005)


def make_records(ends, seeds=range(5), beds=tuple(BEDS)):
    """Runs of every bed and seed, of the algorithms in `ends` with that pass@1 at the end, and a little noise."""
    jobs = [Job(bed, name, seed) for bed in beds for name in ends for seed in seeds]
    return {job: make_record(job, end=ends[job.algorithm] + noise(job)) for job in jobs}


def factorial_ends(effects, base=0.4):
    """The pass@1 of each cell of the factorial where each letter adds its effect."""
    return {name: base + sum(effects.get(letter, 0.0) for letter in on) for on, name in cells().items()}
