"""The keys of a file below conf/: value, comment and the class that reads them.

A comment stands behind its key, goes on in lines below that begin in the same column, or stands in lines above. What
a file takes over from its `defaults` is not repeated; `bases` names them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

PACKAGE = re.compile(r"#\s*@package\s+(\S+)")
COMMENT = re.compile(r"\s*#\s?(.*)")


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a file."""

    path: str
    """Where it stands in the whole configuration, with dots."""
    value: str
    """As it is written; empty where other keys stand below."""
    comment: str
    """What the file says of it, perhaps nothing."""
    target: str
    """`_target_` beside it: what reads it. Empty where no class does, or where the file takes it over."""


@dataclass(frozen=True, kw_only=True)
class ConfFile:
    """One file: what it is for, and its keys."""

    group: str
    """Folder below conf/, empty for the root."""
    name: str
    header: str
    bases: tuple[str, ...]
    """The files that it builds on, as `group/name`: those of its `defaults`."""
    keys: tuple[Key, ...]


def read_file(path: Path, root: Path) -> ConfFile:
    """Read a file below `root`, which is conf/."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    begin = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    header = [COMMENT.sub(r"\1", line) for line in lines[:begin] if not PACKAGE.match(line)]
    group = str(path.parent.relative_to(root)).replace(".", "")
    stated = PACKAGE.search(text)
    prefix = {"_global_": ""}.get(stated.group(1), stated.group(1)) if stated else group.replace("/", ".")
    node = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    keys = tuple(_keys(node, prefix, lines, begin)) if isinstance(node, yaml.MappingNode) else ()
    bases = tuple(_bases((yaml.safe_load(text) or {}).get("defaults", []), group))
    return ConfFile(group=group, name=path.stem, header=" ".join(header), bases=bases, keys=keys)


def _bases(defaults: list[str | dict[str, str | None]], group: str) -> Iterator[str]:
    for entry in defaults:
        chosen, name = next(iter(entry.items())) if isinstance(entry, dict) else ("", entry)
        folder = chosen.removeprefix("override ").partition("@")[0]
        place = folder if folder.startswith("/") else "/".join(filter(None, (group, folder)))
        if isinstance(name, str) and name != "_self_":
            yield f"{place}/{name}".strip("/")


def _keys(node: yaml.MappingNode, prefix: str, lines: list[str], start: int) -> Iterator[Key]:
    target = next((value.value for key, value in node.value if key.value == "_target_"), "")
    for key, value in node.value:
        if key.value in ("_target_", "_partial_") or (key.value == "defaults" and not key.start_mark.column):
            continue
        path = f"{prefix}.{key.value}".lstrip(".")
        below = isinstance(value, yaml.MappingNode) and not value.flow_style
        comment = _comment(lines, key, key if below else value, start)
        shown = "" if below else _written(lines, value)
        yield Key(path=path, value=shown, comment=comment, target=target)
        if below:
            yield from _keys(value, path, lines, start)


def _written(lines: list[str], value: yaml.Node) -> str:
    begin, end = value.start_mark, value.end_mark
    if begin.line == end.line:
        return lines[begin.line][begin.column : end.column]
    part = [lines[begin.line][begin.column :], *lines[begin.line + 1 : end.line]]
    part += [lines[end.line][: end.column]] if end.line < len(lines) else []
    return " ".join(line.split("  #")[0].strip() for line in part).strip()


def _comment(lines: list[str], key: yaml.Node, value: yaml.Node, start: int) -> str:
    """Return the comment above a key, behind it, and below in the same column."""
    found: list[str] = []
    above = key.start_mark.line - 1
    while above >= start and lines[above].lstrip().startswith("#"):
        if lines[above].index("#") != key.start_mark.column:
            break
        found.insert(0, COMMENT.sub(r"\1", lines[above]))
        above -= 1
    line = value.end_mark.line if value.end_mark.line == value.start_mark.line else key.start_mark.line
    rest = lines[line][value.end_mark.column :] if line == value.end_mark.line else lines[line].partition(":")[2]
    behind = re.search(r"\s#\s?(.*)", rest)
    if behind:
        column = len(lines[line]) - len(rest) + rest.index("#")
        found.append(behind.group(1))
        for below in lines[line + 1 :]:
            if not below.lstrip().startswith("#") or below.index("#") != column:
                break
            found.append(COMMENT.sub(r"\1", below))
    return " ".join(found)


def read_all(root: Path) -> tuple[ConfFile, ...]:
    """Read every file below `root`: the root's own first, then folder by folder."""
    paths = sorted(root.rglob("*.yaml"), key=lambda path: (path.parent != root, path.parent, path.name))
    return tuple(read_file(path, root) for path in paths)
