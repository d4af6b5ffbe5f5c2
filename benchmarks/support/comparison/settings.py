"""What is compared: test beds, algorithms, AEPO's factorial, seeds, and the order in which runs are made."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import product

CONFIG_MODULE = "aepo_lightning.conf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bed:
    """An experiment, and what a run on it may spend."""

    experiment: str
    num_generated_tokens: int
    """At which curves over tokens end."""
    num_answered_calls: int
    """At which curves over tool calls end."""
    words: tuple[str, ...] = ()
    """Of the command line, beside the experiment."""

    def for_pilot(self, num_iterations: int) -> "Bed":
        """Return the bed for a run of so many iterations that nothing else ends and that is hardly evaluated."""
        words = (f"trainer.max_epochs={num_iterations}", f"trainer.check_val_every_n_epoch={num_iterations}")
        return replace(self, num_generated_tokens=NO_END, words=(*self.words, *words, "data.num_val_questions=8"))


NO_END = 10**12
PILOT_SEED = 1000
"""Of the runs that budgets come from: none that is compared has it."""


HELD_OUT = ("data.num_val_questions=64", "evaluation.num_samples=4", "evaluation.pass_at=[1,4]")
"""Held-out questions are answered by independent samples, and cost no budget."""
LONGER = 2
"""How many times the iterations that GRPO needs for the budgets a run may have: branching spends less on each."""


def _bed(experiment: str, num_iterations: int, num_generated_tokens: int, num_answered_calls: int) -> Bed:
    """Return a bed on which GRPO spends the budgets within a number of iterations, validated five times until then."""
    every = max(1, round(num_iterations / 5))
    lengths = (f"trainer.max_epochs={LONGER * num_iterations}", f"trainer.check_val_every_n_epoch={every}")
    return Bed(
        experiment=experiment,
        num_generated_tokens=num_generated_tokens,
        num_answered_calls=num_answered_calls,
        words=(*HELD_OUT, *lengths),
    )


BEDS: Mapping[str, Bed] = {
    "stability": _bed("stability", 12, 72_000, 3_900),
    "sparse": _bed("sparse", 12, 125_000, 8_200),
    "burst": _bed("burst", 12, 145_000, 7_400),
}
TRIAL: Mapping[str, Bed] = {"quickstart": _bed("quickstart", 16, 150_000, 10_000)}
"""The main job, on which no claim is tested: to try the command."""

MOST_SEEDS, OTHER_SEEDS = 10, 5
"""Of the algorithms that claims are about, and of the rest."""
FIRST = ("aepo", "grpo", "arpo", "dapo", "random_branching")

WITHOUT: Mapping[str, tuple[str, ...]] = {
    "M": ("~algorithm.allocator", "+algorithm.allocator={_target_: aepo_lightning.budgets.RootShare, share: 0.5}"),
    "P": ("algorithm.branch_policy.penalty_per_step=0.0",),
    "S": ("algorithm.objective.preserve_high=0.0",),
    "A": ("algorithm.shaping=null",),
}
"""How AEPO is without pre-Monitoring (half of the budget at the root), Penalty, Stop-gradient, entropy Advantage."""


def cells() -> dict[str, str]:
    """Return the name of each of the 16 cells of the factorial, by the letters of what is on.

    All on is `aepo` and all off is `arpo`, which are the same configurations under these names.
    """
    letters = ["".join(each) for each in product(*(("", letter) for letter in WITHOUT))]
    return {on: {"MPSA": "aepo", "": "arpo"}.get(on, f"aepo-{on}") for on in letters}


def algorithms() -> dict[str, tuple[str, ...]]:
    """Return the words of every algorithm: the presets of `conf/algorithm`, then the cells of the factorial."""
    found = (each.name for each in files(CONFIG_MODULE).joinpath("algorithm").iterdir())
    presets = sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml") and name[0] != "_")
    words = {preset: (f"algorithm={preset}",) for preset in presets}
    for on, name in cells().items():
        if name not in words:
            off = (word for letter, removal in WITHOUT.items() if letter not in on for word in removal)
            words[name] = ("algorithm=aepo", f"algorithm.name={name}", *off)
    return dict(sorted(words.items(), key=lambda item: _place(item[0])))


def _place(algorithm: str) -> tuple[int, int, str]:
    if algorithm in FIRST:
        return 0, FIRST.index(algorithm), algorithm
    return 1 + (algorithm not in cells().values()), -len(algorithm), algorithm


def num_seeds(algorithm: str) -> int:
    """Return how many seeds an algorithm is run with."""
    return MOST_SEEDS if algorithm in FIRST or algorithm in cells().values() else OTHER_SEEDS


@dataclass(frozen=True, slots=True, order=True)
class Job:
    """One run."""

    bed: str
    algorithm: str
    seed: int

    @property
    def name(self) -> str:
        """Bed, algorithm and seed."""
        return f"{self.bed}/{self.algorithm}/{self.seed}"


def jobs(beds: Sequence[str], chosen: Sequence[str], most_seeds: int | None = None) -> list[Job]:
    """Return all runs in the order in which the table becomes useful early.

    Every algorithm has its first seed before any has its second, and those that most claims are about go first.

    Args:
        beds: Which.
        chosen: Algorithms, in the order of `algorithms()`.
        most_seeds: Of every algorithm; None takes as many as the analysis plan asks for.
    """
    return list(_jobs(beds, chosen, most_seeds))


def _jobs(beds: Sequence[str], chosen: Sequence[str], most_seeds: int | None) -> Iterator[Job]:
    wanted = {name: num_seeds(name) if most_seeds is None else most_seeds for name in chosen}
    for seed in range(max(wanted.values(), default=0)):
        for algorithm in chosen:
            if seed < wanted[algorithm]:
                yield from (Job(bed, algorithm, seed) for bed in beds)
