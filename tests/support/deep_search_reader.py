"""Reads pages and questions of the deep-search world from their words alone, and answers by rule: slow and independent.

Nothing here knows how the world is drawn or written; each sentence has a pattern of its own.
"""

import re
from dataclasses import dataclass, field

P = r"(?P<{}>(?:the \w+ )?[A-Z]\w+ [A-Z]\w+)"  # a person, with the trade where the name alone fits two
W = r"(?P<{}>[A-Z]\w+)"
T = r"(?P<{}>The [A-Z]\w+ [A-Z]\w+)"  # a title


def pattern(text, **kinds):
    for name, kind in kinds.items():
        text = text.replace(f"<{name}>", kind.format(name))
    return re.compile(text)


PERSON = {"name": r"(?P<{}>[A-Z]\w+ [A-Z]\w+)", "trade": r"(?P<{}>\w+)", "birthplace": W, "teacher": P}
PLACE = {"name": W, "trade": r"(?P<{}>\w+ town)", "region": W, "founder": P}
WORK = {"name": T, "trade": r"(?P<{}>\w+)", "author": P, "setting": W, "year": r"(?P<{}>\d+)"}
GUILD = {"name": W, "head": P, "seat": W, "members": r"(?P<{}>\d+)", "trade": "(?P<{}>guild)"}
FAIR = {"name": W, "host": W, "winner": P, "trade": "(?P<{}>fair)"}
REGION = {"name": W, "capital": W, "trade": "(?P<{}>region)"}
LEADS = (
    pattern(r"^<name> is an? <trade> born in <birthplace> and taught by <teacher>\.", **PERSON),
    pattern(r"^The <trade> <name>, a pupil of <teacher>, comes from <birthplace>\.", **PERSON),
    pattern(r"^<name> is an? <trade> in the region <region>, founded by <founder>\.", **PLACE),
    pattern(r"^The <trade> <name> was founded by <founder> and lies in the region <region>\.", **PLACE),
    pattern(r"^<name> is an? <trade> of <year> by <author>, set in <setting>\.", **WORK),
    pattern(r"^The <trade> <name> by <author> appeared in <year> and is set in <setting>\.", **WORK),
    pattern(r"^<name> is a <trade> of <members> members, seated in <seat> and led by <head>\.", **GUILD),
    pattern(r"^The <trade> <name>, led by <head>, has its seat in <seat> and <members> members\.", **GUILD),
    pattern(r"^<name> is a <trade> held in <host>; its prize went to <winner>\.", **FAIR),
    pattern(r"^The <trade> <name> takes place in <host>, and <winner> won its prize\.", **FAIR),
    pattern(r"^<name> is a <trade> whose capital is <capital>\.", **REGION),
    pattern(r"^The <trade> <name> is governed from its capital <capital>\.", **REGION),
)
BODY = tuple(
    re.compile(text)
    for text in (
        r"was born in (?P<birth_year>\d{4})\.",
        r"The year of birth is (?P<birth_year>\d{4})\.",
        r"belongs to the guild (?P<guild>[A-Z]\w+)\.",
        r"The guild (?P<guild>[A-Z]\w+) counts ",
        r"has (?P<inhabitants>\d+) inhabitants\.",
        r"The last count gave (?P<inhabitants>\d+) inhabitants\.",
    )
)
FILE = re.compile(r"This file belongs to the record of (?P<subject>(?:the \w+ )?[A-Z]\w+(?: [A-Z]\w+)?)\.")
FILED = tuple(
    re.compile(text)
    for text in (
        r"lives in (?P<residence>[A-Z]\w+)\.",
        r"The home of .+? is in (?P<residence>[A-Z]\w+)\.",
        r"The warden of \w+ is (?P<warden>(?:the \w+ )?[A-Z]\w+ [A-Z]\w+)\.",
        r"(?P<warden>(?:[Tt]he \w+ )?[A-Z]\w+ [A-Z]\w+) serves as warden of ",
    )
)
EDITION = re.compile(r"^Edition (?P<number>\d+) of the fair (?P<fair>\w+) drew (?P<visitors>\d+) visitors\.")
OPENINGS = re.compile(r"^(Record of (?P<record>\d+)|Copy of the record of (?P<copy>\d+)|Unconfirmed report)\. ")
ASKS = {
    "birthplace": r"Where was (.+) born\?",
    "teacher": r"Who taught (.+)\?",
    "birth_year": r"In which year was (.+) born\?",
    "guild": r"To which guild does (.+) belong\?",
    "residence": r"Where does (.+) live\?",
    "region": r"In which region does (.+) lie\?",
    "founder": r"Who founded (.+)\?",
    "inhabitants": r"How many inhabitants does (.+) have\?",
    "warden": r"Who is the warden of (.+)\?",
    "capital": r"What is the capital of (.+)\?",
    "author": r"Who wrote (.+)\?",
    "setting": r"Where is (.+) set\?",
    "year": r"In which year did (.+) appear\?",
    "seat": r"Where is the seat of (.+)\?",
    "head": r"Who leads (.+)\?",
    "members": r"How many members does (.+) have\?",
    "host": r"Where is (.+) held\?",
    "winner": r"Who won the prize of (.+)\?",
}
PHRASES = {"home": "residence", "prize winner": "winner"}
RELATED = "birthplace|teacher|guild|home|region|founder|warden|capital|author|setting|seat|head|host|prize winner"
NOMINAL = re.compile(rf"the ({RELATED}) of (.+)")
COMPARED = re.compile(r"the (earlier|later|older|younger|smaller|larger) of (.+) and (.+)")
NUMBERS = ("year", "birth_year", "inhabitants", "members")


def capital_free(mention):
    """`The weaver X Y` at the beginning of a sentence is `the weaver X Y`."""
    return re.sub(r"^The (?=[a-z])", "the ", mention)


@dataclass
class Library:
    """Facts by thing, a thing being a name with its trade."""

    facts: dict = field(default_factory=dict)
    editions: dict = field(default_factory=dict)
    years: dict = field(default_factory=dict)
    files: list = field(default_factory=list)

    def read(self, text):
        """Take in a page, whole or its beginning."""
        if edition := EDITION.match(text):
            self.editions.setdefault(edition["fair"], {})[edition["number"]] = int(edition["visitors"])
        elif filed := FILE.match(text):
            self.files.append((filed["subject"], text))
        elif (opening := OPENINGS.match(text)) and (opening["record"] or opening["copy"]):
            self._read_record(text, opening)

    def _read_record(self, text, opening):
        rest = text[opening.end() :]
        lead = next((found for each in LEADS if (found := each.match(rest))), None)
        if lead is None:
            return
        found = lead.groupdict()
        key = (found.pop("name"), found.pop("trade"))
        for each in BODY:
            found |= match.groupdict() if (match := each.search(rest)) else {}
        # the latest counts, and a record more than its copy
        rank = (int(opening["record"] or opening["copy"]), bool(opening["record"]))
        if rank[0] > self.years.get(key, (0,))[0]:
            self.facts[key], self.years[key] = found, rank
        elif rank[0] == self.years[key][0]:
            self.facts[key] = {**self.facts[key], **found}

    def settle(self):
        """Give each file to its thing."""
        for subject, text in self.files:
            if (key := self.find(subject)) is not None:
                for each in FILED:
                    self.facts[key] |= match.groupdict() if (match := each.search(text)) else {}
        return self

    def find(self, mention):
        """Return the thing that a mention means; None if it is unknown or fits two."""
        mention = capital_free(mention)
        fits = [key for key in self.facts if mention in (key[0], f"the {key[1]} {key[0]}")]
        return fits[0] if len(fits) == 1 else None


def answer(question, library):
    """Return the answer to a question, or None if the pages read so far do not tell it."""
    if total := re.fullmatch(r"How many (inhabitants|members) do (.+) and (.+) have together\?", question):
        values = [value_of(total[1], library.find(total[place]), library) for place in (2, 3)]
        return None if None in values else str(sum(map(int, values)))
    if total := re.fullmatch(r"How many visitors did all editions of the fair (\w+) draw together\?", question):
        editions = library.editions.get(total[1], {})
        return str(sum(editions.values())) if editions else None
    for relation, text in ASKS.items():
        if asked := re.fullmatch(text, question):
            return plain(value_of(relation, resolve(asked[1], library), library))
    raise AssertionError(f"no pattern reads {question!r}")


def resolve(said, library):
    """Return the thing that a noun phrase means."""
    if compared := COMPARED.fullmatch(said):
        things = [library.find(compared[2]), library.find(compared[3])]
        if None in things:
            return None
        numbers = [number_of(library.facts[each]) for each in things]
        if None in numbers:
            return None
        is_first_smaller = numbers[0] < numbers[1]
        return things[0] if is_first_smaller == (compared[1] in ("earlier", "older", "smaller")) else things[1]
    if nested := NOMINAL.fullmatch(said):
        found = value_of(PHRASES.get(nested[1], nested[1]), resolve(nested[2], library), library)
        return None if found is None else library.find(found)
    return library.find(said)


def number_of(facts):
    return next((int(facts[name]) for name in NUMBERS if name in facts), None)


def value_of(relation, thing, library):
    return None if thing is None else library.facts[thing].get(relation)


def plain(value):
    """Return a mention without the trade."""
    return None if value is None else re.sub(r"^[Tt]he [a-z]+ (?=[A-Z])", "", value)
