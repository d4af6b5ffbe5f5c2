"""The shortest way to a proof: which pages to search for and to open, in which order.

A search names one thing and shows the beginning of its pages, with their addresses; opening a page shows the rest of
it, links included. The length of a plan is therefore the least number of calls after which all that proves an answer
has been read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from aepo_lightning.tasks.deep_search.pages import WorldPages, first_sentences
from aepo_lightning.tasks.deep_search.relations import Depth, Relation
from aepo_lightning.tasks.deep_search.world import Thing, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call."""

    tool: Literal["search", "browse"]
    argument: str
    """What is searched for, or the address."""
    shows: str
    """Words that the answer must have."""
    note: str = ""
    """What was learnt once the answer has come; empty if another call is needed for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One fact on the way: what a relation gives for a thing."""

    thing: Thing
    relation: Relation
    value: Value

    @property
    def note(self) -> str:
        """The fact in words."""
        said = self.relation.phrase.format(self.thing.name)
        value = self.value.name if isinstance(self.value, Thing) else self.value
        return f"{said[0].upper()}{said[1:]} is {value}."


def plan_chain(hops: Sequence[Hop], pages: WorldPages, is_address_known: bool = False) -> tuple[Step, ...]:
    """Return the shortest plan that reads facts of which each names the thing of the next.

    Args:
        hops: The facts, at least one.
        pages: Where they are told.
        is_address_known: Whether the address of the first thing's record is known, so that it need not be searched.
    """
    plans = []
    for steps, is_opened in _readings(hops[0], pages, is_address_known):
        rest: tuple[Step, ...] = ()
        if len(hops) > 1:
            record = pages.by_url[pages.record[hops[0].thing.number]]
            is_next_known = is_opened and pages.record[hops[1].thing.number] in record.text
            rest = plan_chain(hops[1:], pages, is_next_known)
        plans.append((*steps, *rest))
    return min(plans, key=len)


def _readings(hop: Hop, pages: WorldPages, is_address_known: bool) -> Iterator[tuple[list[Step], bool]]:
    """Yield ways to read one fact, and whether the record was opened on the way."""
    thing, depth = hop.thing, hop.relation.depth
    searched = [] if is_address_known else [search_for(thing, pages)]
    record = pages.record[thing.number]
    if depth is Depth.SNIPPET:
        yield [search_for(thing, pages, hop.note)], False
    if depth is Depth.LINKED:
        file = pages.file[thing.number]
        yield [*searched, open_page(record, pages), open_page(file, pages, hop.note)], True
    else:
        yield [*searched, open_page(record, pages, hop.note)], True


def plan_apart(hops: Sequence[Hop], pages: WorldPages, is_read: frozenset[Depth] = frozenset()) -> tuple[Step, ...]:
    """Return the shortest plan that reads facts about one thing, whose name is known.

    Args:
        hops: The facts.
        pages: Where they are told.
        is_read: What of the thing has been read before.
    """
    thing = hops[0].thing
    notes = {depth: " ".join(hop.note for hop in hops if hop.relation.depth is depth) for depth in Depth}
    steps = {
        Depth.SNIPPET: search_for(thing, pages, notes[Depth.SNIPPET]),
        Depth.PAGE: open_page(pages.record[thing.number], pages, notes[Depth.PAGE]),
    }
    if thing.number in pages.file:
        steps[Depth.LINKED] = open_page(pages.file[thing.number], pages, notes[Depth.LINKED])
    order = list(Depth)
    deepest = max(order.index(hop.relation.depth) for hop in hops)
    return tuple(steps[depth] for depth in order[: deepest + 1] if depth not in is_read)


def search_for(thing: Thing, pages: WorldPages, note: str = "") -> Step:
    """Return the search for a thing's name, which must show the beginning of its record."""
    record = pages.by_url[pages.record[thing.number]]
    return Step(tool="search", argument=thing.name, shows=first_sentences(record), note=note)


def open_page(url: str, pages: WorldPages, note: str = "") -> Step:
    """Return the call that opens a page, all of which must come back."""
    return Step(tool="browse", argument=url, shows=pages.by_url[url].text, note=note)
