"""Write the pages of docs/reference: every configuration key, and the public names by room.

`make docs` runs it. The pages are made of conf/*.yaml, of docstrings and of nothing else.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import aepo_lightning
from docs.support.conf_keys import ConfFile, read_all
from docs.support.meanings import Docstrings, Meanings

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs/reference"
ROOMS = {
    "training": "Module, data module, algorithms as values",
    "policy": "Where a policy comes from, the network, LoRA",
    "rollout": "Growing trees",
    "branching": "Branch rules",
    "budgets": "Budget rules",
    "objectives": "Losses",
    "advantages": "Advantages, credit, masks",
    "tasks": "Questions",
    "rewards": "Rewards",
    "tools": "Tools",
    "chat_formats": "How calls are written",
    "engines": "Generation",
    "evaluation": "Benchmarks and results",
    "ops": "Tensor arithmetic",
    "contracts": "The seams: what a part of yours satisfies",
    "callbacks": "Lightning callbacks",
}
TABLES = re.compile(
    r"^hydra\b|^model\.architecture\.|^benchmark\.published\.|^callbacks\.dashboard\.hyper_parameters\."
)
"""Keys that are not listed: Hydra's own, numbers as in a model's `config.json`, what others have published, copies."""
INTRODUCTION = """# Configuration

Every key of `conf/`, with its default and meaning. `python train.py GROUP=OPTION` chooses a file of a group,
`KEY=VALUE` sets a key, and a `+` before it adds one that the files do not name. `???` must be given; `${{...}}` follows
another key. An option has the keys of its own table and those of the options that it builds on; only what differs is
listed. `python train.py --cfg job` prints the whole of it for one command.

{groups}
"""


def main() -> None:
    """Write all pages."""
    PAGES.mkdir(exist_ok=True)
    for name, text in pages().items():
        (PAGES / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Return the text of each page by its name."""
    found = {f"{room}.md": _room(room, title) for room, title in ROOMS.items()}
    return {"configuration.md": configuration(read_all(ROOT / "conf"), Docstrings(ROOT)), **found}


def _room(room: str, title: str) -> str:
    names = [f"aepo_lightning.{module}.{name}" for name, module in _public().items() if module.split(".")[0] == room]
    if room == "contracts":
        names = [f"aepo_lightning.contracts.{path.stem}" for path in _files("aepo_lightning/contracts")]
    if room == "callbacks":
        found = re.findall(r"^from aepo_lightning\.(\S+) import (.+)$", _text("callbacks/__init__.py"), re.MULTILINE)
        names = [f"{module}.{name}" for module, listed in found for name in listed.split(", ")]
    imported = "from aepo_lightning.callbacks import ..." if room == "callbacks" else "from aepo_lightning import ..."
    note = "" if room == "contracts" else f"`{imported}`\n\n"
    return f"# {title}\n\n{note}" + "\n".join(f"::: {name}\n" for name in sorted(names))


def _public() -> dict[str, str]:
    return aepo_lightning._MODULE_OF


def _files(folder: str) -> list[Path]:
    return [path for path in (ROOT / folder).glob("*.py") if path.stem != "__init__"]


def _text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def configuration(files: Iterable[ConfFile], docstrings: Docstrings) -> str:
    """Return the page of all keys, group by group."""
    files = tuple(files)
    meanings = Meanings(files, docstrings)
    groups: dict[str, list[ConfFile]] = {}
    for each in files:
        groups.setdefault(each.group, []).append(each)
    links = [f"- [{group or 'the commands'}](#{_anchor(group)})" for group in groups]
    parts = [INTRODUCTION.format(groups="\n".join(links))]
    for group, members in groups.items():
        parts.append(f"## {group or 'The commands'} {{ #{_anchor(group)} }}\n")
        parts += [_section(each, meanings) for each in members]
    return "\n".join(parts)


def _anchor(group: str) -> str:
    return f"group-{group.replace('/', '-') or 'root'}"


def _section(file: ConfFile, meanings: Meanings) -> str:
    choice = f"{file.group}={file.name}" if file.group else file.name
    choice = f"+{choice}" if file.group == "experiment" else choice
    title = (
        f"### `{choice}`"
        if not file.name.startswith("_")
        else f"### What options of `{file.group}` share: `{file.name}`"
    )
    rows = [(key, meanings.meaning(file, key)) for key in file.keys if not TABLES.match(key.path)]
    rows = [(key, said) for key, said in rows if key.value or said]
    lines = [title, "", _escaped(file.header), ""]
    if rows:
        lines += ["| key | default | meaning |", "|---|---|---|"]
        lines += [f"| `{key.path}` | {_code(key.value)} | {_escaped(said)} |" for key, said in rows]
    return "\n".join(lines) + "\n"


def _code(value: str) -> str:
    short = value if len(value) <= 60 else value[:57] + "..."
    return f"`{short.replace('|', chr(92) + '|')}`" if short else ""


def _escaped(text: str) -> str:
    """Return text of a comment for a cell: what Markdown would read as markup stands as it is."""
    pieces = re.split(r"(`[^`]*`)", text)
    pieces[::2] = [re.sub(r"([*_\[\]])", r"\\\1", each).replace("<", "&lt;") for each in pieces[::2]]
    return "".join(pieces).replace("|", "\\|")


if __name__ == "__main__":
    main()
