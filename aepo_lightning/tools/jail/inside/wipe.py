"""Empties a folder in which hostile code has worked."""

import os
import stat
from contextlib import suppress


def wipe(folder: str) -> bool:
    """Delete everything in a folder.

    Folders are moved up before they are deleted, so neither depth nor the length of a path nor modes can stop it.

    Args:
        folder: Stays, empty.

    Returns:
        Whether it is empty now.
    """
    with suppress(OSError):  # only its owner may, and only then the code could have changed it
        os.chmod(folder, stat.S_IRWXU | stat.S_ISVTX | stat.S_IRWXG | stat.S_IRWXO)
    try:
        while names := os.listdir(folder):
            for name in names:
                _take_apart(folder, os.path.join(folder, name))
    except OSError:
        return False
    with suppress(OSError):  # times can be set to any number by the owner, and would carry it to the next call
        os.utime(folder, (0, 0))
    return True


def _take_apart(folder: str, path: str) -> None:
    """Delete a file, or a folder after its own folders were moved up beside it."""
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
        return
    os.chmod(path, stat.S_IRWXU)
    with os.scandir(path) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.path, stat.S_IRWXU)
                os.rename(entry.path, os.path.join(folder, os.urandom(8).hex()))  # a name that nobody could foresee
            else:
                os.unlink(entry.path)
    os.rmdir(path)
