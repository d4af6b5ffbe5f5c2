"""Paths as people write them in shells and in files, and what goes wrong with the folders that they name."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from aepo_lightning.errors import ConfigError
from aepo_lightning.tasks.paths import data_root

PATH_KEY = re.compile(r"(^|_)(path|paths|dir|root|folder|file|files)$")
"""Keys of the configuration whose values are paths."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCKED = (errno.EACCES, errno.EPERM, errno.EROFS)
_OTHERS = (errno.EIO, errno.ESTALE, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
UNWRITABLE = (*_FULL, *_LOCKED, *_OTHERS)
"""What is wrong with a disk or a path, not with this program."""
OmegaConf.register_new_resolver("data_root", lambda: str(data_root(None)), replace=True)  # `${data_root:}` in conf/


def as_path(text: object, key: str) -> Path:
    """Return a path as a shell would read it: `~` is a home, `$NAME` a variable.

    Args:
        text: As in the configuration, where a folder named 2024 is a number.
        key: Where it stands there.

    Raises:
        ConfigError: If it is empty, or names a variable or a user that does not exist.
    """
    expanded = expand(str(text), key)
    if not expanded.strip():
        raise ConfigError(f"`{key}` must name a file or a folder, but got {text!r}. Write {key}=PATH.")
    return Path(expanded)


def expand(text: str, key: str) -> str:
    """Return a text with `~` at its beginning and variables in it replaced, as a shell does.

    Raises:
        ConfigError: If a variable or a user does not exist.
    """
    found = os.path.expandvars(text)
    missing = re.search(r"\$\{?[A-Za-z_]\w*\}?", found)
    if not missing:
        found = os.path.expanduser(found)
        missing = re.match(r"~[^/]*", found)
    if missing and not Path(found).exists():
        raise ConfigError(
            f"`{key}` must name what exists, but got {text!r}, and there is no {missing.group()}. Set it, "
            "or write the path in full."
        )
    return found


def expand_paths(cfg: DictConfig | ListConfig, key: str = "") -> None:
    """Expand, in place, every text of a configuration that stands under a key of a path.

    What refers to another key is left alone: that one is expanded.

    Raises:
        ConfigError: If a variable or a user does not exist.
    """
    keys: Any = list(cfg) if isinstance(cfg, DictConfig) else range(len(cfg))
    for name in keys:
        if OmegaConf.is_interpolation(cfg, name) or OmegaConf.is_missing(cfg, name):
            continue
        own = str(name) if isinstance(cfg, DictConfig) else key.rpartition(".")[2]
        full = f"{key}.{name}".removeprefix(".") if isinstance(cfg, DictConfig) else key
        value = cfg[name]
        if isinstance(value, (DictConfig, ListConfig)):
            expand_paths(value, full)
        elif isinstance(value, str) and PATH_KEY.search(own) and ("~" in value[:1] or "$" in value):
            with open_dict(cfg):
                cfg[name] = expand(value, full)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Explain what goes wrong while a file or folder is written.

    Raises:
        ConfigError: If the disk or the path does not allow it.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(explain_unwritable(error, path)) from error


def explain_unwritable(error: OSError, folder: Path) -> str:
    """Return one message about a disk that is full, a folder that is read-only, a path that cannot be.

    Args:
        error: With one of the numbers in `UNWRITABLE`.
        folder: Where it was written, if the error names no file.
    """
    place = Path(error.filename) if isinstance(error.filename, str) else folder
    reason, elsewhere = error.strerror or str(error), "set run_dir=... or output_root=... to another folder"
    if error.errno in _FULL:
        there = next((each for each in (place, *place.absolute().parents) if each.is_dir()), Path("/"))
        free = f"{shutil.disk_usage(there).free / 1e9:.3g} GB are left there"
        return f"{place} must be written, but: {reason}; {free}. Make room, or {elsewhere}."
    if error.errno in _LOCKED and place.exists() and not os.access(place, os.R_OK):
        return f"{place} must be readable, but: {reason}. Allow it, or name another one."
    if error.errno in _LOCKED:
        return f"{place} must be in a folder that can be written, but: {reason}. Allow it, or {elsewhere}."
    return f"{place} must be a path that can be written, but: {reason}. Correct it, or {elsewhere}."
