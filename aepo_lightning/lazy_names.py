"""Names of a package that are imported when they are first used."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def homes(places: Mapping[str, str]) -> dict[str, str]:
    """Return for each name the module that defines it.

    Args:
        places: Names by module, with spaces between them.
    """
    return {name: place for place, names in places.items() for name in names.split()}


def importer(package: str, parent: str, home_of: Mapping[str, str], namespace: dict[str, Any]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package.

    Args:
        package: Its name, for the error about an unknown one.
        parent: What the modules of `home_of` are relative to.
        home_of: For each name its module.
        namespace: The package's own names, which keep what was imported.
    """

    def get(name: str) -> Any:
        """Import a public name."""
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{parent}.{home_of[name]}"), name)
        namespace[name] = value
        return value

    return get
