"""What can be said of each kind of thing, where it is said, and in which words."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a thing of the world is."""

    PERSON = "person"
    PLACE = "place"
    REGION = "region"
    WORK = "work"
    GUILD = "guild"
    FAIR = "fair"


class Depth(StrEnum):
    """Where a relation is told, hence what it takes to read it."""

    SNIPPET = "snippet"
    """In the first sentence of the record: a search shows it."""
    PAGE = "page"
    """Further down in the record: it has to be opened."""
    LINKED = "linked"
    """On a page that search does not find and the record links to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """A function from the things of one kind to things of another, or to whole numbers."""

    name: str
    subject: Kind
    value: Kind | None
    """Kind of the values; None for numbers."""
    depth: Depth
    phrase: str
    """The value as a noun phrase, `{}` being the subject: `the author of {}`."""
    ask: str
    """The question for the value."""
    sentences: tuple[str, ...] = ()
    """Ways to tell it below the first sentence: `{subject}` and `{value}`. Empty where the first sentence tells it."""
    span: tuple[int, int] = (0, 0)
    """Numbers are drawn from here, both ends included."""


TRADES: dict[Kind, tuple[str, ...]] = {
    Kind.PERSON: (
        *("glassblower", "surveyor", "bookbinder", "botanist", "composer", "clockmaker", "printer", "painter"),
        *("astronomer", "physician", "engraver", "potter", "mapmaker", "weaver", "poet", "stonemason"),
    ),
    Kind.PLACE: ("harbour town", "hill town", "market town", "mill town", "mining town", "spa town"),
    Kind.REGION: ("region",),
    Kind.WORK: ("novel", "play", "opera", "symphony", "ballad", "memoir"),
    Kind.GUILD: ("guild",),
    Kind.FAIR: ("fair",),
}
"""What a thing of a kind is called, beside its name."""

LEADS: dict[Kind, tuple[str, ...]] = {
    Kind.PERSON: (
        "{name} is {a_trade} born in {birthplace} and taught by {teacher}.",
        "The {trade} {name}, a pupil of {teacher}, comes from {birthplace}.",
    ),
    Kind.PLACE: (
        "{name} is {a_trade} in the region {region}, founded by {founder}.",
        "The {trade} {name} was founded by {founder} and lies in the region {region}.",
    ),
    Kind.REGION: (
        "{name} is a region whose capital is {capital}.",
        "The region {name} is governed from its capital {capital}.",
    ),
    Kind.WORK: (
        "{name} is {a_trade} of {year} by {author}, set in {setting}.",
        "The {trade} {name} by {author} appeared in {year} and is set in {setting}.",
    ),
    Kind.GUILD: (
        "{name} is a guild of {members} members, seated in {seat} and led by {head}.",
        "The guild {name}, led by {head}, has its seat in {seat} and {members} members.",
    ),
    Kind.FAIR: (
        "{name} is a fair held in {host}; its prize went to {winner}.",
        "The fair {name} takes place in {host}, and {winner} won its prize.",
    ),
}
"""First sentences of a record. They tell all relations of `Depth.SNIPPET`."""

RELATIONS: tuple[Relation, ...] = (
    Relation(
        name="birthplace",
        subject=Kind.PERSON,
        value=Kind.PLACE,
        depth=Depth.SNIPPET,
        phrase="the birthplace of {}",
        ask="Where was {} born?",
    ),
    Relation(
        name="teacher",
        subject=Kind.PERSON,
        value=Kind.PERSON,
        depth=Depth.SNIPPET,
        phrase="the teacher of {}",
        ask="Who taught {}?",
    ),
    Relation(
        name="birth_year",
        subject=Kind.PERSON,
        value=None,
        depth=Depth.PAGE,
        phrase="the birth year of {}",
        ask="In which year was {} born?",
        sentences=("{subject} was born in {value}.", "The year of birth is {value}."),
        span=(1790, 1889),
    ),
    Relation(
        name="guild",
        subject=Kind.PERSON,
        value=Kind.GUILD,
        depth=Depth.PAGE,
        phrase="the guild of {}",
        ask="To which guild does {} belong?",
        sentences=("{subject} belongs to the guild {value}.", "The guild {value} counts {subject} as a member."),
    ),
    Relation(
        name="residence",
        subject=Kind.PERSON,
        value=Kind.PLACE,
        depth=Depth.LINKED,
        phrase="the home of {}",
        ask="Where does {} live?",
        sentences=("{subject} lives in {value}.", "The home of {subject} is in {value}."),
    ),
    Relation(
        name="region",
        subject=Kind.PLACE,
        value=Kind.REGION,
        depth=Depth.SNIPPET,
        phrase="the region of {}",
        ask="In which region does {} lie?",
    ),
    Relation(
        name="founder",
        subject=Kind.PLACE,
        value=Kind.PERSON,
        depth=Depth.SNIPPET,
        phrase="the founder of {}",
        ask="Who founded {}?",
    ),
    Relation(
        name="inhabitants",
        subject=Kind.PLACE,
        value=None,
        depth=Depth.PAGE,
        phrase="the number of inhabitants of {}",
        ask="How many inhabitants does {} have?",
        sentences=("{subject} has {value} inhabitants.", "The last count gave {value} inhabitants."),
        span=(1000, 99999),
    ),
    Relation(
        name="warden",
        subject=Kind.PLACE,
        value=Kind.PERSON,
        depth=Depth.LINKED,
        phrase="the warden of {}",
        ask="Who is the warden of {}?",
        sentences=("The warden of {subject} is {value}.", "{value} serves as warden of {subject}."),
    ),
    Relation(
        name="capital",
        subject=Kind.REGION,
        value=Kind.PLACE,
        depth=Depth.SNIPPET,
        phrase="the capital of {}",
        ask="What is the capital of {}?",
    ),
    Relation(
        name="author",
        subject=Kind.WORK,
        value=Kind.PERSON,
        depth=Depth.SNIPPET,
        phrase="the author of {}",
        ask="Who wrote {}?",
    ),
    Relation(
        name="setting",
        subject=Kind.WORK,
        value=Kind.PLACE,
        depth=Depth.SNIPPET,
        phrase="the setting of {}",
        ask="Where is {} set?",
    ),
    Relation(
        name="year",
        subject=Kind.WORK,
        value=None,
        depth=Depth.SNIPPET,
        phrase="the year of {}",
        ask="In which year did {} appear?",
        span=(1800, 1989),
    ),
    Relation(
        name="seat",
        subject=Kind.GUILD,
        value=Kind.PLACE,
        depth=Depth.SNIPPET,
        phrase="the seat of {}",
        ask="Where is the seat of {}?",
    ),
    Relation(
        name="head",
        subject=Kind.GUILD,
        value=Kind.PERSON,
        depth=Depth.SNIPPET,
        phrase="the head of {}",
        ask="Who leads {}?",
    ),
    Relation(
        name="members",
        subject=Kind.GUILD,
        value=None,
        depth=Depth.SNIPPET,
        phrase="the number of members of {}",
        ask="How many members does {} have?",
        span=(100, 999),
    ),
    Relation(
        name="host",
        subject=Kind.FAIR,
        value=Kind.PLACE,
        depth=Depth.SNIPPET,
        phrase="the host of {}",
        ask="Where is {} held?",
    ),
    Relation(
        name="winner",
        subject=Kind.FAIR,
        value=Kind.PERSON,
        depth=Depth.SNIPPET,
        phrase="the prize winner of {}",
        ask="Who won the prize of {}?",
    ),
)
