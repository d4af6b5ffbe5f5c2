"""The pages about a world: records, and what is written beside them that is old, copied, doubtful or gone.

A page says itself what it is worth. Records carry their year, and the latest one counts; copies repeat the latest one;
unconfirmed reports yield to records. Files and editions are reached by the links of a record only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from aepo_lightning.contracts.web_page import WebPage
from aepo_lightning.errors import ConfigError
from aepo_lightning.tasks.deep_search.relations import LEADS, Depth, Kind, Relation
from aepo_lightning.tasks.deep_search.world import (
    DeepSearchWorld,
    Thing,
    Value,
    World,
    draw_value,
    draw_world,
    relations_of,
)

SNIPPET_WORDS = 25
"""The opening and the first sentence of a record fit into so many words, and nothing else is told in them."""
_LEAST_WORDS = 40
_MAX_LINKS = 2
_RECORD_HOST, _COPY_HOST, _REPORT_HOST = "lore.example", "copies.example", "hearsay.example"
_ADDRESSES = range(10_000, 100_000)
_LATEST_YEARS, _OLDER_YEARS = (1995, 1999), (1980, 1994)
_FILLERS = (
    "Letters kept in the archive add a few colourful details to this.",
    "Much of it was gathered from neighbours and from old account books.",
    "The handwriting of the first clerk is hard to read in places.",
    "A drawing that once belonged here has been lost in a flood.",
    "Several readers have written in to praise the careful work.",
    "The margins hold notes on the weather and the price of bread.",
    "What else is told on winter evenings belongs to legend.",
    "A small exhibition on the subject opens every other summer.",
    "The clerk thanks all who lent papers for this entry.",
    "Nothing further has been found, although many have looked for it.",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WorldPages:
    """All pages about a world, and which of them are about what."""

    pages: tuple[WebPage, ...]
    by_url: Mapping[str, WebPage]
    record: Mapping[int, str]
    """Address of the latest record of each thing, by its number."""
    file: Mapping[int, str]
    """Address of the page that search does not find, for things that have one."""
    editions: Mapping[int, tuple[str, ...]]
    """Addresses of the editions of a fair, in order."""
    listed: Mapping[int, tuple[str, ...]]
    """Addresses of all pages about a thing that search may find, the latest record first."""


@lru_cache(maxsize=4)
def write_pages(world: DeepSearchWorld) -> WorldPages:
    """Return the pages about a world, and which of them are about what."""
    return _Writer(draw_world(world), Random(f"deep_search/pages/{world.seed}")).write()


def deep_search_pages(world: DeepSearchWorld | None) -> tuple[WebPage, ...]:
    """Return the pages about a world, for search and page readers.

    Raises:
        ConfigError: If there is no world.
    """
    if world is None:
        raise ConfigError("`world` must be that of a DeepSearchTask, but got None. Set data=deep_search.")
    return write_pages(world).pages


def first_sentences(page: WebPage) -> str:
    """Return what a record opens with: what it is, and all facts of `Depth.SNIPPET`."""
    opening, lead, _ = page.text.split(". ", maxsplit=2)
    return f"{opening}. {lead}."


class _Writer:
    """Writes the pages of a world, thing by thing."""

    def __init__(self, world: World, random: Random) -> None:
        self._world, self._random = world, random
        self._clutter = world.settings.clutter
        addresses = list(_ADDRESSES)
        random.shuffle(addresses)
        self._addresses = iter(addresses)
        self._record = {thing.number: self._address(_RECORD_HOST) for thing in world.things}
        has_file = {each.kind for each in world.things if _told(each, Depth.LINKED)}
        self._file = {each.number: self._address(_RECORD_HOST) for each in world.things if each.kind in has_file}
        self._editions = {
            thing.number: tuple(self._address(_RECORD_HOST) for _ in thing.editions)
            for thing in world.things
            if thing.editions
        }
        self._pools: dict[tuple[Kind, str], list[Thing]] = {}
        for thing in world.things:
            self._pools.setdefault((thing.kind, thing.split), []).append(thing)

    def write(self) -> WorldPages:
        pages: list[WebPage] = []
        listed: dict[int, tuple[str, ...]] = {}
        for thing in self._world.things:
            written = [*self._about(thing)]
            listed[thing.number] = tuple(page.url for page in written if page.is_listed)
            pages += written
        return WorldPages(
            pages=tuple(pages),
            by_url={page.url: page for page in pages},
            record=self._record,
            file=self._file,
            editions=self._editions,
            listed=listed,
        )

    def _about(self, thing: Thing) -> Iterator[WebPage]:
        """Write the latest record first, at most two other listed pages, then what the record links to."""
        extras = [] if thing.has_namesake else self._draw_extras()
        values = {each.name: self._world.value(thing, each) for each in relations_of(thing.kind)}
        year, old_year = self._random.randint(*_LATEST_YEARS), self._random.randint(*_OLDER_YEARS)
        rule = [f"This record replaces that of {old_year}."] if "old" in extras else []
        opening = f"Record of {year}."
        yield self._page(thing, values, self._record[thing.number], opening, [*rule, *self._links(thing, values)])
        for extra in extras:
            told = values if extra == "copy" else self._mistaken(thing, values)
            host, opening, rule = {
                "old": (_RECORD_HOST, f"Record of {old_year}.", ["A later record replaces this one."]),
                "copy": (_COPY_HOST, f"Copy of the record of {year}.", ["Only the record itself is kept up to date."]),
                "report": (_REPORT_HOST, "Unconfirmed report.", ["Where a record says otherwise, the record counts."]),
            }[extra]
            yield self._page(thing, told, self._address(host), opening, rule)
        if thing.number in self._file:
            sentences = [
                f"This file belongs to the record of {thing.mention}.",
                *self._told(thing, values, Depth.LINKED),
            ]
            yield self._linked_page(f"File of {thing.name}", self._file[thing.number], sentences)
        for number, visitors in enumerate(thing.editions, start=1):
            told_here = [f"Edition {number} of the fair {thing.name} drew {visitors} visitors."]
            address = self._editions[thing.number][number - 1]
            yield self._linked_page(f"{thing.name}, edition {number}", address, told_here)

    def _draw_extras(self) -> list[str]:
        drawn = [
            extra
            for extra, share in (("old", 0.35), ("copy", 0.2), ("report", 0.25))
            if self._random.random() < share * self._clutter
        ]
        return drawn[:2]

    def _page(self, thing: Thing, values: Mapping[str, Value], url: str, opening: str, notes: Sequence[str]) -> WebPage:
        told = {name: _words(value) for name, value in values.items()}
        lead = self._random.choice(LEADS[thing.kind]).format(
            name=thing.name, trade=thing.trade, a_trade=with_article(thing.trade), **told
        )
        body = [*self._told(thing, values, Depth.PAGE), *notes]
        self._random.shuffle(body)
        fillers = self._random.sample(_FILLERS, len(_FILLERS))
        first = _filled([opening, lead], SNIPPET_WORDS, fillers)
        return WebPage(url=url, title=thing.name, text=" ".join(_filled([*first, *body], _LEAST_WORDS, fillers)))

    def _linked_page(self, title: str, url: str, sentences: Sequence[str]) -> WebPage:
        fillers = self._random.sample(_FILLERS, len(_FILLERS))
        text = " ".join(_filled(sentences, _LEAST_WORDS, fillers))
        return WebPage(url=url, title=title, text=text, is_listed=False)

    def _told(self, thing: Thing, values: Mapping[str, Value], depth: Depth) -> list[str]:
        """Return a sentence for each relation that is told at a depth."""
        return [
            _capital(self._random.choice(each.sentences).format(subject=thing.mention, value=_words(values[each.name])))
            for each in _told(thing, depth)
        ]

    def _links(self, thing: Thing, values: Mapping[str, Value]) -> list[str]:
        """Return the sentences of a record that name other addresses; some lead nowhere."""
        named = [value for value in values.values() if isinstance(value, Thing)]
        shown = [values[each.name] for each in _told(thing, Depth.LINKED)]
        open_values = [value for value in named if value not in shown and self._random.random() < 0.5]
        links = [f"See {each.mention} ({self._record[each.number]})." for each in open_values[:_MAX_LINKS]]
        if thing.number in self._file:
            links.append(f"There is a file, too ({self._file[thing.number]}).")
        if thing.editions:
            addresses = ", ".join(self._editions[thing.number])
            links.append(f"Each edition has a page that tells its visitors ({addresses}).")
        if self._random.random() < 0.25 * self._clutter:
            links.append(f"An older account was kept ({self._address(_RECORD_HOST)}).")
        return links

    def _mistaken(self, thing: Thing, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return values of which at least one that the first sentence tells is wrong."""
        leads = [each for each in relations_of(thing.kind) if each.depth is Depth.SNIPPET]
        certain = self._random.choice(leads)
        wrong = dict(values)
        for relation in relations_of(thing.kind):
            if relation is certain or self._random.random() < 0.3:
                wrong[relation.name] = self._other(relation, thing, values[relation.name])
        return wrong

    def _other(self, relation: Relation, thing: Thing, value: Value) -> Value:
        while (found := draw_value(self._random, relation, thing, self._pools)) == value:
            pass
        return found

    def _address(self, host: str) -> str:
        return f"http://{host}/{next(self._addresses)}"


def _filled(sentences: Sequence[str], least_words: int, fillers: list[str]) -> list[str]:
    """Return sentences with what means nothing after them where they are short; what is used leaves `fillers`."""
    pieces = list(sentences)
    while len(" ".join(pieces).split()) < least_words:
        pieces.append(fillers.pop())
    return pieces


def _told(thing: Thing, depth: Depth) -> list[Relation]:
    return [each for each in relations_of(thing.kind) if each.depth is depth]


def with_article(noun: str) -> str:
    """Return a noun after `a` or `an`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _words(value: Value) -> str:
    return value.mention if isinstance(value, Thing) else str(value)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
