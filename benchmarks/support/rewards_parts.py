"""The parts of `benchmarks.rewards`: rules on one core, mathematics through its processes, hostile expressions."""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from aepo_lightning.contracts.checker import AnswerChecker, Claim, Verdict
from aepo_lightning.rewards import checkers
from aepo_lightning.rewards.checkers import MathEquivalence, math_equivalence
from benchmarks.support.rewards_pairs import GOLD, Pair, hostile_answers, ordinary_pairs

_AT_ONCE = 200
_BEAT_S = 0.02
_NAMES = (
    "Lyon is a city",
    "the river Rhone",
    "yes",
    "1,234.5",
    "Marie Curie",
    "October 1, 1990; Berlin",
    "B",
    "3.5 km",
)


def measure_rules(number: int) -> dict[str, float]:
    """Return how many claims each rule looks at in a second of CPU time of one core."""
    rules: Mapping[str, AnswerChecker] = {
        name: getattr(checkers, name)() for name in checkers.__all__ if name != "MathEquivalence"
    }
    claims = [
        Claim(question="?", answer=_NAMES[each % 8], golds=(_NAMES[each // 8 % 8], _NAMES[each // 64 % 8]))
        for each in range(number)
    ]

    async def look(checker: AnswerChecker) -> float:
        started = time.process_time()
        for claim in claims:
            await checker(claim)
        return time.process_time() - started

    return {name: number / asyncio.run(look(checker)) for name, checker in rules.items()}


async def judge(checker: AnswerChecker, pairs: Sequence[Pair]) -> list[Verdict]:
    """Return the verdicts, with many claims under way at once."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def one(pair: Pair) -> Verdict:
        async with places:
            return await checker(Claim(question="?", golds=(pair.gold,), answer=pair.answer))

    return await asyncio.gather(*map(one, pairs))


def measure_mathematics(number: int, num_workers: int = 2) -> dict[str, float]:
    """Return pairs per second through the processes, by the clock and by their CPU time, and how many were wrong."""
    checker = MathEquivalence(num_workers=num_workers, time_limit_s=60.0)
    pairs = list(ordinary_pairs(number, seed=1))

    async def run() -> dict[str, float]:
        await judge(checker, list(ordinary_pairs(200)))  # processes start, tables fill
        cpu_s, started = _cpu_s(), time.perf_counter()
        verdicts = await judge(checker, pairs)
        wall_s, cpu_s = time.perf_counter() - started, _cpu_s() - cpu_s
        return {
            "pairs": number,
            "per_s": number / wall_s,
            "per_s_of_cpu_time_on_2_cores": 2 * number / cpu_s,
            "cores_used": cpu_s / wall_s,
            "wrong": _num_wrong(pairs, verdicts),
        }

    return asyncio.run(run())


def measure_hostile(number: int, num_endless: int, limit_s: float) -> dict[str, float]:
    """Return what hostile expressions cost, and what became of ordinary pairs between them.

    Args:
        number: Hostile expressions; there is an ordinary pair after every tenth of them.
        num_endless: How many of them never end.
        limit_s: Of one claim.
    """
    hostile = [Pair(answer=each, gold=GOLD, is_right=False) for each in hostile_answers(number, num_endless)]
    ordinary = list(ordinary_pairs(max(number // 10, 1), seed=2))
    mixed: list[Pair] = []
    for each, tenth in zip_longest(ordinary, (hostile[start : start + 10] for start in range(0, number, 10))):
        mixed += [*(tenth or []), *([each] if each else [])]
    checker = MathEquivalence(time_limit_s=limit_s)

    async def run() -> dict[str, float]:
        await judge(checker, list(ordinary_pairs(50)))
        watch = _Watch()
        beat = asyncio.create_task(watch.beat())
        started = time.perf_counter()
        verdicts = await judge(watch.watching(checker), mixed)
        wall_s = time.perf_counter() - started
        beat.cancel()
        ours = {id(each) for each in ordinary}
        kept = [(pair, verdict) for pair, verdict in zip(mixed, verdicts, strict=True) if id(pair) in ours]
        unscored = [verdict for verdict in verdicts if not verdict.is_scored]
        return {
            "hostile": number,
            "endless": num_endless,
            "limit_s": limit_s,
            "took_s": wall_s,
            "longest_without_a_verdict_s": watch.longest_s,
            "longest_hold_of_the_event_loop_s": watch.hold_s,
            "unscored": len(unscored),
            "cut_off": sum("took longer" in verdict.reason for verdict in unscored),
            "called_right": sum(v.is_correct for p, v in zip(mixed, verdicts, strict=True) if id(p) not in ours),
            "ordinary": len(kept),
            "ordinary_wrong": _num_wrong(*zip(*kept, strict=True)),
        }

    return asyncio.run(run())


class _Watch:
    """Notes the longest time without a verdict and the longest time for which nothing else ran in the event loop."""

    def __init__(self) -> None:
        self.longest_s = self.hold_s = 0.0
        self._last = time.perf_counter()

    def watching(self, checker: AnswerChecker) -> AnswerChecker:
        async def watched(claim: Claim) -> Verdict:
            found = await checker(claim)
            now = time.perf_counter()
            self.longest_s, self._last = max(self.longest_s, now - self._last), now
            return found

        return watched

    async def beat(self) -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(_BEAT_S)
            self.hold_s = max(self.hold_s, time.perf_counter() - started - _BEAT_S)


def _num_wrong(pairs: Sequence[Pair], verdicts: Sequence[Verdict]) -> int:
    return sum(
        not verdict.is_scored or verdict.is_correct != pair.is_right
        for pair, verdict in zip(pairs, verdicts, strict=True)
    )


def _cpu_s() -> float:
    """Return the CPU time of the server of the processes, of those that live, and of those that have ended."""
    server = math_equivalence._calls.server_pid
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    ticks = sum(_ticks(int(pid), 4) if pid == str(server) else _ticks(int(pid), 2) for pid in [*children, str(server)])
    return ticks / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int, number: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 11 + number]))
