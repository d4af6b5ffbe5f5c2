"""Guides hold together: links, navigation, code blocks, commands with what they override, places of equations."""

import ast
import re
import shlex
import tomllib
from functools import cache

import pytest
import yaml

from docs.support.conf_keys import read_all
from tests.support.paths import CONF, ROOT

PACKAGE = "aepo_lightning"
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "examples/README.md"]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
PLACE = re.compile(r"`((?:[\w-]+/)*\w+\.py)`\s`([\w.]+)`")
KEY = re.compile(r"`((?:algorithm|experience|evaluation|reward|rollout|module|data)(?:\.\w+)+)`")
ANY_KEY = re.compile(
    r"`((?:algorithm|experience|rollout|module|data|engine|callbacks|trainer|coldstart)(?:\.\w+)+)(?:=[^`]*)?`"
)
TEXT = re.compile(r"log_text\(\w+, \"([^\"]+)\"")
METRIC = re.compile(r"`((?:rollout|val|train|guard|time|coldstart|publication)/[a-z0-9_]+)`")
INLINE = re.compile(r"`((?:python|make|aepo-[a-z]+) [^`]+)`")
OVERRIDE = re.compile(r"^(\+{0,2}|~)([\w/.@]+)=(.*)$", re.DOTALL)
BUILTINS = {"source", "export", "pip", "tensorboard", "sbatch", "bash", "pytest", "vllm", "cd"}
COMMAND = (
    "python ",
    "aepo-",
    "make ",
    "pip ",
    "$ ",
    "VLLM_",
    "HEAD_NODE",
    "sbatch",
    "torchrun",
    "source ",
    "tensorboard ",
)
OF_THE_READER = {"risen", "topr", "mine"}  # options of the reader's own folder
FREE = ("hydra", "model.architecture", "strategy", "tools", "reward", "judge", "suite", "sampling")  # open to more keys


def short(path):
    return str(path.relative_to(ROOT))


def blocks(path, *languages):
    return [text for _, language, text in BLOCK.findall(path.read_text()) if language in languages]


def anchors(path):
    """Names of the headings of a page, as the site and GitHub make them."""
    text = BLOCK.sub("", path.read_text())
    heads = [re.sub(r"[`*]", "", head) for head in re.findall(r"^#+ (.+?)\s*$", text, re.MULTILINE)]
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head.lower()).strip()) for head in heads}


@pytest.mark.parametrize("path", TEXTS, ids=short)
def test_every_link_leads_somewhere(path):
    lost = []
    for link in LINK.findall(BLOCK.sub("", path.read_text())):
        name, _, anchor = link.partition("#")
        if "://" in name or name.startswith("reference/"):
            continue
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


def navigation(entry):
    if isinstance(entry, str):
        return [entry]
    return [page for each in (entry if isinstance(entry, list) else entry.values()) for page in navigation(each)]


def test_every_page_is_in_the_navigation_once():
    listed = navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    own = [page for page in listed if not page.startswith("reference/")]
    assert sorted(own) == sorted(path.name for path in PAGES)
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("path", TEXTS, ids=short)
def test_python_compiles_and_yaml_parses(path):
    for text in blocks(path, "python"):
        ast.parse(text)
    for text in blocks(path, "yaml"):
        yaml.safe_load(text)


def imported(text):
    """What a block takes from this library: module, name."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    return [(node.module, each.name) for node in nodes for each in node.names if node.module.startswith(PACKAGE)]


def is_named(module, name):
    """Whether the file of a module has a name as a word, read and not imported."""
    place = ROOT / module.replace(".", "/").replace(f"{PACKAGE}/callbacks", "callbacks")
    files = (place / "__init__.py", place.with_suffix(".py"), place / f"{name}.py")
    return (
        any(re.search(rf"\b{name}\b", each.read_text()) for each in files[:2] if each.is_file()) or files[2].is_file()
    )


def test_blocks_import_what_is_there():
    found = [(short(path), *each) for path in TEXTS for text in blocks(path, "python") for each in imported(text)]
    assert len(found) > 30
    assert [each for each in found if not is_named(*each[1:])] == []


@pytest.mark.parametrize("page", ["own_questions", "rewards", "tools"])
def test_blocks_that_need_nothing_run(page):
    for text in blocks(DOCS / f"{page}.md", "python"):
        exec(compile(text, page, "exec"), {"__name__": "block"})


def commands():
    """Command lines of all shell blocks, and those within a sentence or a table: page, words."""
    for path in TEXTS:
        for text in INLINE.findall(BLOCK.sub("", path.read_text())):
            yield short(path), shlex.split(text)
        for text in blocks(path, "bash", "sh", ""):
            for line in text.replace("\\\n", " ").splitlines():
                if not line.strip() or not line.startswith(COMMAND):
                    continue
                words = shlex.split(line.removeprefix("$ "), comments=True)
                while re.match(r"^[A-Z0-9_]+=", words[0]):
                    words = words[1:]
                yield short(path), words


@cache
def scripts():
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])


def problem(words):
    """What is wrong with a command, or nothing."""
    program, *rest = words
    if program == "make":
        targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        return [word for word in rest if "=" not in word and word not in targets]
    if program in ("python", "torchrun") and rest[:1] == ["-m"]:
        own = rest[1].split(".")[0] in ("aepo_lightning", "benchmarks", "tests", "docs")
        place = ROOT / rest[1].replace(".", "/")
        return [rest[1]] if own and not (place.is_dir() or place.with_suffix(".py").is_file()) else []
    if program == "python":
        return [word for word in rest if word.endswith(".py") and not (ROOT / word).is_file()]
    return [] if program in BUILTINS | scripts() else [program]


def test_commands_name_scripts_targets_and_files_that_exist():
    found = list(commands())
    assert len(found) > 40
    assert [(page, words) for page, words in found if problem(words)] == []


@cache
def keys():
    """Every key of conf/, and every key above one."""
    found = {key.path for each in read_all(CONF) for key in each.keys}
    return found | {".".join(path.split(".")[:length]) for path in found for length in range(1, path.count(".") + 1)}


def unknown(word):
    """Whether an override names neither an option of a group nor a key of conf/."""
    match = OVERRIDE.match(word)
    sign, name, value = match.groups()
    group = CONF / name.replace("@", "/")
    if group.is_dir():
        options = value.strip("[]").split(",")
        return any(each not in OF_THE_READER and not (group / f"{each}.yaml").is_file() for each in options)
    return not (sign.startswith("+") or name in keys() or name.startswith(FREE))


def test_overrides_name_options_and_keys_that_exist():
    found = [(page, word) for page, words in commands() if words[1:2] == ["train.py"] for word in words[2:]]
    found = [(page, word) for page, word in found if OVERRIDE.match(word)]
    assert len(found) > 60
    assert [(page, word) for page, word in found if unknown(word)] == []


def prose(path):
    return BLOCK.sub("", path.read_text())


def test_keys_within_sentences_exist():
    found = [(short(path), key) for path in TEXTS for key in sorted(set(ANY_KEY.findall(prose(path))))]
    assert len(found) > 100
    assert [(page, key) for page, key in found if key not in keys()] == []


def test_metrics_within_sentences_are_logged():
    logged = set(METRIC.findall((DOCS / "metrics.md").read_text()))
    logged |= {name for path in (ROOT / "callbacks").glob("*.py") for name in TEXT.findall(path.read_text())}
    found = [(short(path), name) for path in TEXTS for name in sorted(set(METRIC.findall(prose(path))))]
    assert len(logged) > 200
    assert [(page, name) for page, name in found if name not in logged and not (ROOT / name).exists()] == []


def equations():
    return (DOCS / "paper_to_code.md").read_text()


@pytest.mark.parametrize(("path", "name"), sorted(set(PLACE.findall(equations()))))
def test_every_place_of_an_equation_is_there(path, name):
    scope = ast.parse((ROOT / path).read_text()).body
    for part in name.split("."):
        names = {
            each: each.name for each in scope if isinstance(each, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        }
        names |= {each: each.target.id for each in scope if isinstance(each, ast.AnnAssign)}
        found = [each for each, known in names.items() if known == part]
        assert found, f"{path} has no {name}"
        scope = getattr(found[0], "body", [])


def test_every_key_of_an_equation_is_there():
    named = set(KEY.findall(equations()))
    assert len(named) > 15
    assert sorted(named - keys()) == []
