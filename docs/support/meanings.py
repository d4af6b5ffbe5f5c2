"""What a key of the configuration means, where its file says nothing: the docstring of the argument that it becomes."""

from functools import cache
from pathlib import Path

import griffe


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
