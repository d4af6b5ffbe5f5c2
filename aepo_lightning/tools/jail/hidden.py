"""What lies below a mounted folder and is not for the code inside: this library, and the folders in which people work.

Packages are mounted by whole folders, and an installed library stands in one of them.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import aepo_lightning

PACKAGE_FOLDERS = ("site-packages", "dist-packages")
"""Names of folders that hold installed packages."""
_OWN_NAME = "aepo_lightning"


def cover_private_folders(mounts: Mapping[str, str], needed: Iterable[str]) -> list[str]:
    """Write the part of the command line that covers private folders by empty ones.

    A covered folder may hold something that is needed, such as packages in the folder of a project: that is mounted
    again on top.

    Args:
        mounts: Folders of the host and where they appear inside.
        needed: Paths of the host that must stay. A folder that is one of them, or holds the interpreter, is left alone.

    Returns:
        Options of bubblewrap, to come after the mounts.
    """
    kept = _outermost(map(os.path.realpath, needed))
    words: list[str] = []
    for folder in _private_folders(mounts):
        below = [path for path in kept if path != folder and Path(path).is_relative_to(folder)]
        for target in places_inside(folder, mounts):
            words += ["--perms", "0711" if below else "0000", "--tmpfs", target]
            for path in below:
                place = f"{target}/{Path(path).relative_to(folder)}"
                words += [*_folders_between(target, place), "--ro-bind", path, place]
            words += ["--remount-ro", target]
    return words


def places_inside(path: str, mounts: Mapping[str, str]) -> list[str]:
    """Return where a path of the host appears inside; nowhere if nothing above it is mounted.

    Args:
        path: Without links in it, as `os.path.realpath` gives it.
        mounts: Folders of the host and where they appear inside.
    """
    sources = [(os.path.realpath(source), target) for source, target in mounts.items()]
    found = (
        str(Path(target, Path(path).relative_to(source)))
        for source, target in sources
        if Path(path).is_relative_to(source)
    )
    return list(dict.fromkeys(found))


def library_folder() -> str:
    """Return the folder of this library, without links in its path."""
    return str(Path(aepo_lightning.__file__).resolve().parent)


def _private_folders(mounts: Mapping[str, str]) -> list[str]:
    """Return the folders to cover, outermost first."""
    system = [*map(os.path.realpath, ("/bin", "/sbin", "/lib", "/lib64")), os.path.realpath(os.__file__)]
    found = {os.path.realpath(path) for path in _candidates(mounts) if os.path.isdir(path)}
    kept = [path for path in found if not any(Path(each).is_relative_to(path) for each in system)]
    return sorted(kept, key=lambda path: (len(Path(path).parts), path))


def _candidates(mounts: Mapping[str, str]) -> Iterator[str | Path]:
    library = Path(library_folder())
    yield library
    if library.parent.name not in PACKAGE_FOLDERS:  # a checkout
        yield library.parent
    yield Path.home()
    with suppress(FileNotFoundError):  # it may have been removed
        yield Path.cwd()
    for folder in mounts:
        yield from Path(folder).glob(f"{_OWN_NAME}*")


def _outermost(paths: Iterable[str]) -> list[str]:
    found = set(paths)
    return sorted(path for path in found if not any(str(above) in found for above in Path(path).parents))


def _folders_between(above: str, below: str) -> list[str]:
    folders = [str(folder) for folder in reversed(Path(below).parents) if Path(folder).is_relative_to(above)]
    return [part for folder in folders if folder != above for part in ("--perms", "0755", "--dir", folder)]
