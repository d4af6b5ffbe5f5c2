"""What the laboratory measures one after the other, and what it keeps of each."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor

from aepo_lightning.branching import NeverBranch
from aepo_lightning.training.algorithm import Algorithm
from benchmarks.support.laboratory import truth
from benchmarks.support.laboratory.estimates import describe
from benchmarks.support.laboratory.exact import expected_update, looks_at_entropies
from benchmarks.support.laboratory.policy import TabularPolicy, at_entropy
from benchmarks.support.laboratory.updates import Bench, Updates, joined
from benchmarks.support.laboratory.world import World

POLICY_SEED = 14
"""Of the logits: among 24, the one under which uncertainty after a result and the value there go together most, so that
a branch rule which looks at the one can bias an estimate of the other."""
GROUPS_PER_STEP = 8
"""Of algorithms that normalise over the step, from all quests alike. All others take steps of one group."""
CHUNK = 128
"""Groups of each quest that are grown before the clock is looked at."""
MIN_STEPS = 40
"""Of each quest in any case: two for each part that the jackknife leaves out."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A policy, and what is true of it."""

    entropy: float
    """Share of the entropy of uniform choices."""
    world: World

    @cached_property
    def policy(self) -> TabularPolicy:
        """The policy with this entropy."""
        return at_entropy(self.world, self.entropy, POLICY_SEED)

    @property
    def quests(self) -> range:
        """Numbers of the quests."""
        return range(len(self.world.quests))

    @cached_property
    def gradients(self) -> list[Tensor]:
        """The true gradient of each quest, flat."""
        return [truth.gradient(self.policy, quest).flatten() for quest in self.quests]

    @cached_property
    def values(self) -> list[float]:
        """The true expected reward of each quest."""
        return [float(truth.value(self.policy, quest).detach()) for quest in self.quests]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One algorithm under one policy."""

    table: str
    name: str
    algorithm: Algorithm
    setting: Setting


def measure(case: Case, *, seconds: float, num_groups: int | None) -> dict[str, Any]:
    """Return the figures of a case.

    Args:
        case: What is measured.
        seconds: Steps are taken in chunks until this time is over, at least one chunk of each quest.
        num_groups: Groups of each quest, in place of the time.
    """
    setting = case.setting
    groups = GROUPS_PER_STEP if case.algorithm.normalize_over == "step" else 1
    bench = Bench(algorithm=case.algorithm, policy=setting.policy, groups_per_step=groups)
    found: list[list[Updates]] = [[] for _ in setting.quests]
    wanted = None if num_groups is None else max(MIN_STEPS, num_groups // groups)
    begin, begin_cpu, taken = perf_counter(), process_time(), 0
    while not taken or (perf_counter() - begin < seconds if wanted is None else taken < wanted):
        size = max(MIN_STEPS, CHUNK // groups) if wanted is None else min(CHUNK, wanted - taken)
        for own, update in zip(found, _updates(bench, setting, size, seed=taken), strict=True):
            own.append(update)
        taken += size
    figures = describe([joined(each) for each in found], setting.gradients, setting.values)
    return {
        "table": case.table,
        "name": case.name,
        "entropy": setting.entropy,
        "num_steps": taken,
        "groups_per_cpu_s": taken * (groups if groups > 1 else len(found)) / (process_time() - begin_cpu),
        "bias": figures.bias,
        "bias_within": figures.bias_within,
        **asdict(figures),
    }


def _updates(bench: Bench, setting: Setting, num_steps: int, seed: int) -> list[Updates]:
    """Return first steps by quest: of one quest each, or of all where advantages are normalised over the step."""
    if bench.groups_per_step > 1:
        return bench.mixed_updates(num_steps, seed)
    return [bench.updates(quest, num_steps, seed) for quest in setting.quests]


def is_independent(algorithm: Algorithm) -> bool:
    """Return whether an algorithm samples independently and looks at one group, without credit of single turns.

    Its expected update can then be enumerated.
    """
    is_plain = algorithm.credit is None and algorithm.normalize_over == "group"
    return is_plain and isinstance(algorithm.branch_policy, NeverBranch) and not algorithm.allocator.needs_probe


def enumerate_updates(
    algorithms: Mapping[str, Algorithm], setting: Setting, budgets: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the expected updates of algorithms that sample independently, without chance.

    Returns:
        For each algorithm and budget the cosine to the true gradient and the factor along it, within each quest and for
        the mean over the quests.
    """
    rows = []
    for name, algorithm in algorithms.items():
        # Where entropies count, few trajectories are alike, and groups of three are too many.
        for budget in [2] if looks_at_entropies(algorithm) else budgets:
            found = [expected_update(algorithm, setting.policy, quest, budget).flatten() for quest in setting.quests]
            pairs = list(zip(found, setting.gradients, strict=True))
            mixed = _cosine(torch.stack(found).sum(0), torch.stack(setting.gradients).sum(0))
            factors = [float(own @ target / target.square().sum()) for own, target in pairs]
            cosines = [_cosine(own, target) for own, target in pairs]
            rows.append(
                {"name": name, "budget": budget, "cosine": mixed, "cosines_within": cosines, "factors": factors}
            )
    return rows


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one, other, 0))
