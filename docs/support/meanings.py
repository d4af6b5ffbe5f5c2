"""What a key of the configuration means: the docstring of the argument that it becomes, and what files say of it.

A file is explained by itself and by what it builds on, never by another option of its group, which gives reasons for a
value of its own.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import griffe

from docs.support.conf_keys import ConfFile, Key

LIMITS = {"limits": "aepo_lightning.contracts.tool.ToolLimits", "retry": "aepo_lightning.contracts.tool.RetryPolicy"}
"""Plain values that become a data class."""
MAIN = "train"
"""What files of groups stand on, besides their own bases."""


class Meanings:
    """What the keys of `files` mean."""

    def __init__(self, files: Iterable[ConfFile], docstrings: "Docstrings") -> None:
        self._files = {f"{each.group}/{each.name}".strip("/"): each for each in files}
        self._docstrings = docstrings

    def meaning(self, file: ConfFile, key: Key) -> str:
        """Return what a key means in a file, perhaps nothing."""
        known = [each for each in self._below(file) for each in each.keys if each.path == key.path]
        said = self._docstring(file, key) or next((each.comment for each in reversed(known) if each.comment), "")
        if key.comment and not _says_all(said, key.comment):
            said = f"{said.rstrip('.')}; {key.comment}" if said else key.comment
        return said or (f"Argument of `{self._target(file, key)}`." if key.value and self._target(file, key) else "")

    def _docstring(self, file: ConfFile, key: Key) -> str:
        return self._docstrings.argument(self._target(file, key), key.path.rpartition(".")[2])

    def _target(self, file: ConfFile, key: Key) -> str:
        above = key.path.rpartition(".")[0]
        beside = (each for found in (file, *self._below(file)) for each in found.keys if each.target)
        stated = (each.target for each in beside if each.path.rpartition(".")[0] == above)
        return key.target or next(stated, LIMITS.get(above.rpartition(".")[2], ""))

    def _below(self, file: ConfFile) -> Iterator[ConfFile]:
        """Yield what a file stands on, nearest first."""
        yield from self._bases(file)
        if file.group and MAIN in self._files:
            main = self._files[MAIN]
            yield main
            yield from (each for each in self._bases(main) if each.group.split("/")[0] != file.group.split("/")[0])

    def _bases(self, file: ConfFile) -> Iterator[ConfFile]:
        for name in reversed(file.bases):
            if name in self._files:
                yield self._files[name]
                yield from self._bases(self._files[name])


def _says_all(text: str, other: str) -> bool:
    """Whether hardly a word of `other` is missing in `text`."""
    words, others = (set(re.findall(r"\w+", each.lower())) for each in (text, other))
    return len(others - words) <= 0.3 * len(others)


class Docstrings:
    """Docstrings of the sources, read without importing them."""

    def __init__(self, root: Path) -> None:
        loader = griffe.GriffeLoader(search_paths=[str(root)], docstring_parser="google")
        self._package = loader.load("aepo_lightning")
        self._package.set_member("callbacks", loader.load("callbacks"))  # its import name
        loader.resolve_aliases(implicit=True, external=False)
        self.argument = cache(self._argument)

    def _argument(self, target: str, name: str) -> str:
        """Return what is said of an argument of a class or function, perhaps nothing."""
        found = self._find(target)
        if found is None:
            return ""
        member = found.members.get(name) if found.is_class else None
        if member is not None and member.docstring is not None:
            return _one_line(member.docstring.value)
        return next((said for each in _documented(found) for said in _of_parameter(each, name)), "")

    def _find(self, target: str) -> griffe.Object | griffe.Alias | None:
        package, _, rest = target.partition(".")
        if package != self._package.name:
            return None
        try:
            return self._package[rest]
        except KeyError:
            return None


def _documented(found: griffe.Object | griffe.Alias) -> list[griffe.Object | griffe.Alias]:
    """Return what may say something of the arguments: a class, its constructor, and the class that a method builds."""
    if found.is_class:
        return [found, *([found.members["__init__"]] if "__init__" in found.members else [])]
    return [found, *([found.parent] if found.parent is not None and found.parent.is_class else [])]


def _of_parameter(found: griffe.Object | griffe.Alias, name: str) -> list[str]:
    sections = found.docstring.parsed if found.docstring is not None else []
    kinds = (griffe.DocstringSectionKind.parameters, griffe.DocstringSectionKind.attributes)
    rows = [row for section in sections if section.kind in kinds for row in section.value]
    return [_one_line(row.description) for row in rows if row.name == name]


def _one_line(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())
