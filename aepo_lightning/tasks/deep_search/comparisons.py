"""Questions that need two things at once: comparisons and counts."""

from dataclasses import replace
from random import Random

from aepo_lightning.tasks.deep_search.facts import Facts
from aepo_lightning.tasks.deep_search.plans import Hop, Step, open_page, plan_apart, search_for
from aepo_lightning.tasks.deep_search.questions import Level, Solved, pages_of
from aepo_lightning.tasks.deep_search.relations import RELATIONS, Depth, Kind, Relation
from aepo_lightning.tasks.deep_search.world import Thing, answer_text

_ORDER_WORDS = {
    "year": ("earlier", "later"),
    "birth_year": ("older", "younger"),
    "inhabitants": ("smaller", "larger"),
    "members": ("smaller", "larger"),
}
"""What the thing with the smaller number is called, and the one with the larger."""
_TOTALS = {
    "inhabitants": "How many inhabitants do {} and {} have together?",
    "members": "How many members do {} and {} have together?",
}
_VISITORS = "How many visitors did all editions of {} draw together?"


def draw_comparison(facts: Facts, random: Random) -> Solved | None:
    """Return a question about the smaller or larger of two things, or None if the draw fits no question."""
    key = random.choice([each for each in RELATIONS if each.name in _ORDER_WORDS and each.depth in facts.depths])
    things = facts.draw_things(random, key.subject, 2)
    asked = random.choice([each for each in facts.relations(key.subject) if each.value is not None])
    keys = [facts.hop(thing, key) for thing in things]
    numbers = [int(str(hop.value)) for hop in keys]
    is_larger = random.random() < 0.5
    if numbers[0] == numbers[1]:
        return None
    winner = things[numbers.index(max(numbers) if is_larger else min(numbers))]
    loser = next(thing for thing in things if thing is not winner)
    last = facts.hop(winner, asked)
    if answer_text(last.value) == answer_text(facts.hop(loser, asked).value):
        return None
    is_clear = facts.is_apart(winner, loser) and facts.is_apart(loser, winner) and facts.is_apart(loser, last.value)
    if not is_clear:
        return None
    word = _ORDER_WORDS[key.name][is_larger]
    text = asked.ask.format(f"the {word} of {things[0].address} and {things[1].address}")
    plan = _comparison_plan(keys, last, facts)
    proof = pages_of([*keys, last], facts.pages)
    return Solved(
        level=Level.COMPARISON,
        text=text,
        answer=answer_text(last.value),
        plan=plan,
        proof=proof,
        mistakes=tuple(dict.fromkeys((answer_text(facts.hop(loser, asked).value), *facts.mistakes(last)))),
    )


def _comparison_plan(keys: list[Hop], last: Hop, facts: Facts) -> tuple[Step, ...]:
    """Read both numbers, then what is asked of the thing that they single out."""
    read = frozenset(list(Depth)[: list(Depth).index(keys[0].relation.depth) + 1])
    steps = [step for hop in keys for step in plan_apart([hop], facts.pages)]
    rest = plan_apart([last], facts.pages, is_read=read)
    if not rest:
        steps[-1] = replace(steps[-1], note=f"{steps[-1].note} {last.note}")
    return (*steps, *rest)


def draw_count(facts: Facts, random: Random) -> Solved | None:
    """Return a question for a sum, or None if the draw fits no question."""
    counted: list[Relation | None] = [each for each in RELATIONS if each.name in _TOTALS and each.depth in facts.depths]
    if Depth.LINKED in facts.depths:
        counted.append(None)
    relation = random.choice(counted)
    if relation is None:
        return _visitors(facts, facts.draw_things(random, Kind.FAIR, 1)[0])
    one, other = facts.draw_things(random, relation.subject, 2)
    if not (facts.is_apart(one, other) and facts.is_apart(other, one)):
        return None
    hops = [facts.hop(thing, relation) for thing in (one, other)]
    terms = tuple(int(str(hop.value)) for hop in hops)
    return Solved(
        level=Level.COUNT,
        text=_TOTALS[relation.name].format(one.address, other.address),
        answer=str(sum(terms)),
        plan=tuple(step for hop in hops for step in plan_apart([hop], facts.pages)),
        proof=pages_of(hops, facts.pages),
        mistakes=_without_a_term(terms),
        terms=terms,
    )


def _visitors(facts: Facts, fair: Thing) -> Solved:
    record, editions = facts.pages.record[fair.number], facts.pages.editions[fair.number]
    opened = [
        open_page(url, facts.pages, f"Edition {number} of {fair.name} drew {visitors} visitors.")
        for number, (url, visitors) in enumerate(zip(editions, fair.editions, strict=True), start=1)
    ]
    return Solved(
        level=Level.COUNT,
        text=_VISITORS.format(fair.address),
        answer=str(sum(fair.editions)),
        plan=(search_for(fair, facts.pages), open_page(record, facts.pages), *opened),
        proof=(record, *editions),
        mistakes=_without_a_term(fair.editions),
        terms=fair.editions,
    )


def _without_a_term(terms: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(sum(terms) - term) for term in terms))
