"""What questions may be about: the things of a split, what can be read of them, and which of them are kept apart."""

import re
from collections.abc import Sequence
from functools import lru_cache
from random import Random

from aepo_lightning.contracts.question import Split
from aepo_lightning.tasks.deep_search.pages import WorldPages, write_pages
from aepo_lightning.tasks.deep_search.plans import Hop
from aepo_lightning.tasks.deep_search.relations import Depth, Kind, Relation
from aepo_lightning.tasks.deep_search.world import (
    DeepSearchWorld,
    Thing,
    Value,
    answer_text,
    draw_world,
    relations_of,
)

_WORD = re.compile(r"\w+")
_COMMON = {"the"}


class Facts:
    """The facts that may be asked for.

    Args:
        world: What is asked about.
        split: Whose things are asked about.
        depth: What is told deeper than that is not asked for.
    """

    def __init__(self, world: DeepSearchWorld, split: Split, depth: Depth) -> None:
        self.pages: WorldPages = write_pages(world)
        self._world = draw_world(world)
        self.depths = list(Depth)[: list(Depth).index(depth) + 1]
        self._relations = {
            kind: [relation for relation in relations_of(kind) if relation.depth in self.depths] for kind in Kind
        }
        self._by_kind = {kind: self._world.of_kind(kind, split) for kind in Kind}
        self.things = [thing for thing in self._world.things if thing.split == split]
        self._index = _word_index(world)
        self._shown: dict[int, frozenset[str]] = {}

    def draw_things(self, random: Random, kind: Kind, count: int) -> list[Thing]:
        """Return different things of a kind."""
        return random.sample(self._by_kind[kind], count)

    def relations(self, kind: Kind) -> list[Relation]:
        """Return what may be asked of a kind."""
        return self._relations[kind]

    def hop(self, thing: Thing, relation: Relation) -> Hop:
        """Return the fact that a relation gives for a thing."""
        return Hop(thing=thing, relation=relation, value=self._world.value(thing, relation))

    def mistakes(self, hop: Hop) -> tuple[str, ...]:
        """Return wrong answers to the question for a fact: what else is told of the thing, or the same of another."""
        thing, kin = hop.thing, self._by_kind[hop.thing.kind]
        next_ones = kin[kin.index(thing) + 1 :] + kin[: kin.index(thing)]
        others = [self._world.value(thing, each) for each in relations_of(thing.kind) if each.depth in self.depths]
        values = [*others, *(self._world.value(each, hop.relation) for each in next_ones[:2])]
        said = [answer_text(value) for value in values if isinstance(value, Thing) == isinstance(hop.value, Thing)]
        return tuple(dict.fromkeys(text for text in said if text != answer_text(hop.value)))

    def is_chain(self, hops: Sequence[Hop]) -> bool:
        """Return whether each fact leads to the next and to no later one, so that nothing can be skipped.

        Nothing that a search for a thing may show names what comes after the next thing, the answer included, and the
        pages about a thing name none that came before. The answer does not stand in the question.
        """
        values: list[Value] = [*(hop.thing for hop in hops), hops[-1].value]
        for position, hop in enumerate(hops):
            if any(_name_words(value) & self._shown_words(hop.thing) for value in values[position + 2 :]):
                return False
            if not all(self.is_apart(hop.thing, value) for value in values[:position]):
                return False
        return not any(_name_words(hops[0].thing) & _name_words(value) for value in values[1:])

    def is_apart(self, thing: Thing, value: Value) -> bool:
        """Return whether the pages about a thing that search finds have no word of a value's name."""
        own = frozenset().union(*(self._index.words[url] for url in self.pages.listed[thing.number]))
        return not own & _name_words(value)

    def _shown_words(self, thing: Thing) -> frozenset[str]:
        """Return all words of the pages that a search for a thing's name may show."""
        if thing.number not in self._shown:
            urls = {url for word in _name_words(thing) for url in self._index.urls.get(word, ())}
            self._shown[thing.number] = frozenset().union(*(self._index.words[url] for url in urls))
        return self._shown[thing.number]


class _WordIndex:
    """Words of the pages that search finds, and the pages of words."""

    def __init__(self, pages: WorldPages) -> None:
        self.words = {page.url: frozenset(_WORD.findall(page.text.lower())) for page in pages.pages if page.is_listed}
        self.urls: dict[str, list[str]] = {}
        for url, words in self.words.items():
            for word in words:
                self.urls.setdefault(word, []).append(url)


@lru_cache(maxsize=4)
def _word_index(world: DeepSearchWorld) -> _WordIndex:
    return _WordIndex(write_pages(world))


def _name_words(value: Value) -> set[str]:
    return set(_WORD.findall(answer_text(value).lower())) - _COMMON
