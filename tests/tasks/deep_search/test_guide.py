"""What docs/deep_search.md shows of the default world."""

import re

import pytest

from aepo_lightning.tasks import DeepSearchTask, DeepSearchWorld
from aepo_lightning.tasks.deep_search.pages import write_pages
from aepo_lightning.tasks.deep_search.relations import RELATIONS, Depth
from tests.support.paths import ROOT

GUIDE = (ROOT / "docs/deep_search.md").read_text()
QUOTES = [" ".join(quote.replace("> ", "").split()) for quote in re.findall(r"(?:^> .*\n)+", GUIDE, re.MULTILINE)]


@pytest.mark.slow
def test_the_page_and_the_proof_that_it_shows_are_there():
    pages = write_pages(DeepSearchWorld()).by_url
    assert pages["http://lore.example/77580"].text == QUOTES[0]
    assert "http://lore.example/96780" not in pages
    solved = DeepSearchTask(levels=["two_hops"]).solved("val", 8)
    assert solved.text == QUOTES[1]
    rows = re.findall(r"^\| `<(\w+)> (.+) </\w+>` \| `(.+)` \|$", GUIDE, re.MULTILINE)
    assert [(step.tool, step.argument) for step in solved.plan] == [(tool, argument) for tool, argument, _ in rows]
    assert all(shown in step.shows for step, (_, _, shown) in zip(solved.plan, rows, strict=True))


@pytest.mark.slow
def test_the_questions_that_it_shows_are_asked():
    asked = {}
    task = DeepSearchTask()
    for index in range(600):
        solved = task.solved("train", index)
        asked.setdefault(str(solved.level), set()).add(solved.text)
    shown = re.findall(r"^\| `(\w+)` \| (\w.+\?) \|$", GUIDE, re.MULTILINE)
    assert {level for level, _ in shown} == set(asked)
    assert all(text in asked[level] for level, text in shown)


def test_its_table_has_all_relations():
    rows = re.findall(r"^\| (person|place|region|work|guild|fair) \| (.*) \|(.*)\|(.*)\|$", GUIDE, re.MULTILINE)
    told = [each for row in rows for cell in row[1:] for each in cell.strip().split(", ") if each]
    words = {"birth_year": "birth year", "residence": "home", "winner": "prize winner"}
    assert sorted(told) == sorted(
        ["visitors of each edition", *(words.get(each.name, each.name) for each in RELATIONS)]
    )
    assert [len(cell.strip().split(", ")) for cell in rows[0][1:]] == [
        sum(each.subject == "person" and each.depth is depth for each in RELATIONS) for depth in Depth
    ]
