"""Questions of 1 to 4 hops about a world, each with its answer and how to prove it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from aepo_lightning.tasks.deep_search.facts import Facts
from aepo_lightning.tasks.deep_search.pages import WorldPages
from aepo_lightning.tasks.deep_search.plans import Hop, Step, plan_chain
from aepo_lightning.tasks.deep_search.relations import Depth
from aepo_lightning.tasks.deep_search.world import Thing, answer_text


class Level(StrEnum):
    """What a question asks for."""

    ONE_HOP = "one_hop"
    TWO_HOPS = "two_hops"
    THREE_HOPS = "three_hops"
    FOUR_HOPS = "four_hops"
    COMPARISON = "comparison"
    """Something about the earlier, older, larger or other of two things."""
    COUNT = "count"
    """How many there are of two things together, or over the editions of a fair."""


NUM_HOPS = {Level.ONE_HOP: 1, Level.TWO_HOPS: 2, Level.THREE_HOPS: 3, Level.FOUR_HOPS: 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """A question with its answer and its proof."""

    level: Level
    text: str
    answer: str
    plan: tuple[Step, ...]
    """The calls that prove the answer; there is no shorter way."""
    proof: tuple[str, ...]
    """Addresses of the pages that tell the facts, in the order of the plan."""
    mistakes: tuple[str, ...]
    """Answers that somebody gives who reads badly: another value of the same record, a sum without a term."""
    terms: tuple[int, ...] = ()
    """Numbers that the answer is the sum of, for counts."""


def draw_hops(facts: Facts, random: Random, level: Level) -> Solved | None:
    """Return a question that follows one fact to the next, or None if the draw fits no question."""
    thing = random.choice(facts.things)
    hops: list[Hop] = []
    num_hops = NUM_HOPS[level]
    while len(hops) < num_hops:
        is_last = len(hops) == num_hops - 1
        relations = [each for each in facts.relations(thing.kind) if is_last or each.value is not None]
        if not relations:
            return None
        hops.append(facts.hop(thing, random.choice(relations)))
        if isinstance(value := hops[-1].value, Thing):
            thing = value
    if not facts.is_chain(hops) or not (mistakes := facts.mistakes(hops[-1])):
        return None
    said = hops[0].thing.address
    for hop in hops[:-1]:
        said = hop.relation.phrase.format(said)
    return Solved(
        level=level,
        text=hops[-1].relation.ask.format(said),
        answer=answer_text(hops[-1].value),
        plan=plan_chain(hops, facts.pages),
        proof=pages_of(hops, facts.pages),
        mistakes=mistakes,
    )


def page_of(hop: Hop, pages: WorldPages) -> str:
    """Return the address of the page that tells a fact."""
    told = pages.file if hop.relation.depth is Depth.LINKED else pages.record
    return told[hop.thing.number]


def pages_of(hops: Sequence[Hop], pages: WorldPages) -> tuple[str, ...]:
    """Return the addresses of the pages that tell facts, each once."""
    return tuple(dict.fromkeys(page_of(hop, pages) for hop in hops))
