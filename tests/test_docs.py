"""What texts name is there: files in README, docs and docstrings of modules, dotted names in README and docs."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PATH = re.compile(r"(?<![\w./-])((?:[\w.-]+/)*[\w-]+\.(?:py|yaml|sbatch|sh|md))\b")
DOTTED = re.compile(r"\baepo_lightning(?:\.\w+)+")
PLACE = re.compile(r"`((?:[\w-]+/)*\w+\.py)`\s`([\w.]+)`")
OF_THE_READER = {"conf/tools/calculator.yaml", "conf/tools/mine.yaml", "config.yaml", "my_tools.py", "my_rewards.py"}
OF_THE_READER |= {"evaluation.yaml"}  # in the folder of an evaluation, as config.yaml in that of a run
OF_THE_READER |= {"my_package/topr.py", "tests/test_topr.py", "my_conf/algorithm/topr.yaml"}
OF_THE_READER |= {"my_conf/algorithm/objective/topr.yaml", "my_conf/judge/mine.yaml"}
OF_THE_READER |= {"my_parts.py", "my_conf/algorithm/risen.yaml", "my_conf/data/sums.yaml"}
OF_THE_READER |= {"reference/configuration.md"}  # `make docs` writes it
TEXTS = sorted([ROOT / "README.md", ROOT / "examples/README.md", *(ROOT / "docs").glob("*.md")])
SOURCES = sorted(
    path
    for folder in ("aepo_lightning", "callbacks", "conf", "benchmarks", "examples", "tests")
    for path in (ROOT / folder).rglob("*.py")
)


def short(path):
    return str(path.relative_to(ROOT))


def missing(path, text):
    """Paths that start nowhere: neither in the checkout, nor in the package, nor beside the text."""
    starts = (ROOT, ROOT / "aepo_lightning", path.parent)
    found = {name for name in PATH.findall(text) if "/" in name}
    return sorted(name for name in found - OF_THE_READER if not any((start / name).exists() for start in starts))


@pytest.mark.parametrize("path", TEXTS, ids=short)
def test_every_file_that_a_guide_names_is_there(path):
    assert missing(path, path.read_text()) == []


def test_every_file_that_a_module_docstring_names_is_there():
    found = {short(path): missing(path, ast.get_docstring(ast.parse(path.read_text())) or "") for path in SOURCES}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize("path", TEXTS, ids=short)
def test_every_file_that_a_guide_names_without_its_folder_is_somewhere(path):
    names = {each.name for each in SOURCES} | {"train.py"} | {each.name for each in ROOT.glob("conf/**/*.yaml")}
    named = {name for name in PATH.findall(path.read_text()) if name.endswith((".py", ".yaml")) and "/" not in name}
    assert sorted(named - names - OF_THE_READER) == []


@pytest.mark.parametrize("path", TEXTS, ids=short)
def test_every_dotted_name_of_a_guide_can_be_imported(path):
    assert [name for name in sorted(set(DOTTED.findall(path.read_text()))) if not is_importable(name)] == []


def is_importable(name):
    """Whether a name is a module, or stands in one as a word. Some import what only an engine's machine has."""
    module, _, attribute = name.rpartition(".")
    parent = find_spec(module)
    if parent.submodule_search_locations is not None and find_spec(name) is not None:
        return True
    return re.search(rf"\b{attribute}\b", Path(parent.origin).read_text()) is not None


def places():
    return PLACE.findall((ROOT / "docs/architecture.md").read_text())


def test_the_trips_name_places():
    assert len(places()) > 50


@pytest.mark.parametrize(("path", "name"), sorted(set(places())))
def test_what_a_trip_names_is_in_the_file(path, name):
    folder = next(start for start in (ROOT, ROOT / "aepo_lightning") if (start / path).is_file())
    scope = ast.parse((folder / path).read_text()).body
    for part in name.split("."):
        found = [each for each in scope if getattr(each, "name", None) == part]
        assert found, f"{path} has no {name}"
        scope = found[0].body
