"""The world that is written about: persons, places, works and what relates them, drawn from a seed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import TypeAlias

from aepo_lightning.contracts.question import Split
from aepo_lightning.errors import ConfigError
from aepo_lightning.tasks.deep_search.names import NUM_TITLES, NameGiver
from aepo_lightning.tasks.deep_search.relations import RELATIONS, TRADES, Kind, Relation

_SHARES: dict[Kind, float] = {
    Kind.PERSON: 0.4,
    Kind.PLACE: 0.16,
    Kind.REGION: 0.04,
    Kind.WORK: 0.24,
    Kind.GUILD: 0.1,
    Kind.FAIR: 0.06,
}
_LEAST_THINGS = 50
_NUM_EDITIONS = (2, 4)
_SHARED_SURNAMES = 0.2

Value: TypeAlias = "Thing | int"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSearchWorld:
    """What decides a world. Equal settings give equal worlds on every machine.

    Raises:
        ConfigError: If a setting has no meaning.
    """

    seed: int = 0
    num_things: int = 1200
    """Persons (40 %), places (16), regions (4), works (24), guilds (10) and fairs (6), each with a record."""
    val_share: float = 0.25
    """Share of the things that validation asks about. Nothing relates them to those of training."""
    clutter: float = 1.0
    """How much is written beside the records: outdated versions, copies, unconfirmed reports, namesakes, dead links.
    0 is none; 1 gives three of five things such a page."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if not 0 < self.val_share < 1:
            raise ConfigError(f"`val_share` must be in (0, 1), but got {self.val_share}. It is a share of the world.")
        most = int(NUM_TITLES / _SHARES[Kind.WORK])
        smaller = self.num_things * min(self.val_share, 1 - self.val_share)
        if smaller < _LEAST_THINGS or self.num_things > most:
            raise ConfigError(
                f"`num_things` must give each split at least {_LEAST_THINGS} and be at most {most}, but got "
                f"{self.num_things} with `val_share` {self.val_share}. Change it."
            )
        if not 0 <= self.clutter <= 1:
            raise ConfigError(f"`clutter` must be in [0, 1], but got {self.clutter}. It scales probabilities.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Thing:
    """A person, a place, a work: what a record is about."""

    number: int
    """Position in the world."""
    kind: Kind
    name: str
    trade: str
    """What it is called beside its name: `glassblower`, `novel`."""
    split: Split
    """Whose questions may be about it."""
    has_namesake: bool
    editions: tuple[int, ...] = ()
    """Visitors of each edition of a fair, in order."""

    @property
    def mention(self) -> str:
        """The words by which pages refer to it: with the trade, where another thing has the same name."""
        return f"the {self.trade} {self.name}" if self.has_namesake else self.name

    @property
    def address(self) -> str:
        """The words by which a question refers to it, which fit no other thing."""
        return self.name if self.kind is Kind.WORK else f"the {self.trade} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """Things and their relations: the truth, which the records tell."""

    settings: DeepSearchWorld
    things: tuple[Thing, ...]
    values: Mapping[tuple[int, str], Value]
    """What a relation gives for a thing, by the thing's number and the relation's name."""

    def value(self, thing: Thing, relation: Relation) -> Value:
        """Return what a relation gives for a thing."""
        return self.values[thing.number, relation.name]

    def of_kind(self, kind: Kind, split: Split) -> list[Thing]:
        """Return the things of a kind that questions of a split may be about."""
        return [thing for thing in self.things if thing.kind is kind and thing.split == split]


def answer_text(value: Value) -> str:
    """Return a value as an answer: a name without the trade, or the digits of a number."""
    return value.name if isinstance(value, Thing) else str(value)


def relations_of(kind: Kind) -> Iterator[Relation]:
    """Return what can be said of the things of a kind."""
    return (relation for relation in RELATIONS if relation.subject is kind)


@lru_cache(maxsize=4)
def draw_world(settings: DeepSearchWorld) -> World:
    """Return the world of some settings."""
    random = Random(f"deep_search/world/{settings.seed}/{settings.num_things}/{settings.val_share}/{settings.clutter}")
    things = _draw_things(random, settings)
    pools: dict[tuple[Kind, str], list[Thing]] = {}
    for thing in things:
        pools.setdefault((thing.kind, thing.split), []).append(thing)
    values: dict[tuple[int, str], Value] = {}
    for thing in things:
        for relation in relations_of(thing.kind):
            values[thing.number, relation.name] = draw_value(random, relation, thing, pools)
    return World(settings=settings, things=tuple(things), values=values)


def draw_value(
    random: Random, relation: Relation, thing: Thing, pools: Mapping[tuple[Kind, str], list[Thing]]
) -> Value:
    """Return a value that a relation may have for a thing, other than the thing itself.

    Args:
        random: Where it comes from.
        relation: Of the thing's kind.
        thing: Whose value it is.
        pools: The things of each kind and split.
    """
    if relation.value is None:
        return random.randint(*relation.span)
    while (found := random.choice(pools[relation.value, thing.split])) is thing:
        pass
    return found


def _draw_things(random: Random, settings: DeepSearchWorld) -> list[Thing]:
    namer = NameGiver(random)
    things: list[Thing] = []
    sizes: tuple[tuple[Split, float], ...] = (("train", 1 - settings.val_share), ("val", settings.val_share))
    for split, part in sizes:
        for kind, share in _SHARES.items():
            count = max(2, round(settings.num_things * share * part))
            names = _draw_names(random, namer, kind, count, settings.clutter)
            for name, is_shared in names:
                taken = {each.trade for each in things if is_shared and each.name == name}
                things.append(
                    Thing(
                        number=len(things),
                        kind=kind,
                        name=name,
                        trade=random.choice([trade for trade in TRADES[kind] if trade not in taken]),
                        split=split,
                        has_namesake=is_shared,
                        editions=_draw_editions(random) if kind is Kind.FAIR else (),
                    )
                )
    return things


def _draw_names(random: Random, namer: NameGiver, kind: Kind, count: int, clutter: float) -> list[tuple[str, bool]]:
    """Return names, and whether another thing has the same one. Some persons share the surname or the whole name."""
    if kind is Kind.WORK:
        return [(namer.title(), False) for _ in range(count)]
    if kind is not Kind.PERSON:
        return [(namer.word(), False) for _ in range(count)]
    num_pairs = round(0.05 * clutter * count)
    names: list[str] = []
    for _ in range(count - num_pairs):
        is_relative = len(names) > 0 and random.random() < _SHARED_SURNAMES * clutter
        surname = random.choice(names).split()[1] if is_relative else namer.word()
        names.append(f"{namer.word()} {surname}")
    shared = set(random.sample(names, num_pairs))
    return [(name, name in shared) for name in names] + [(name, True) for name in names if name in shared]


def _draw_editions(random: Random) -> tuple[int, ...]:
    return tuple(random.randint(100, 999) for _ in range(random.randint(*_NUM_EDITIONS)))
