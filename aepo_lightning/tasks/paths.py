"""Where data files are looked for, and how a fault in one is named."""

import os
from pathlib import Path

from aepo_lightning.errors import DataError

_CHECKOUT = Path(__file__).resolve().parents[2]


def data_root(data_dir: str | None) -> Path:
    """Return the folder that relative paths start from where the working directory has no such file.

    Args:
        data_dir: The folder, if the caller knows it. Else the environment variable `AEPO_DATA_DIR`, else `shared/data`
            beside the checkout if there is one, else the current directory.
    """
    given = data_dir or os.environ.get("AEPO_DATA_DIR")
    if given:
        return Path(given).expanduser()
    beside = _CHECKOUT.parent / "shared" / "data"
    return beside if beside.is_dir() else Path.cwd()


def find_file(path: str, data_dir: str | None) -> Path:
    """Return the absolute path of a data file.

    Args:
        path: A relative one starts from `data_dir` if that is given. Else from the working directory if the file is
            there, and from `data_root` if it is not.
        data_dir: The folder, if the caller knows it.

    Raises:
        DataError: If there is no such file, with where it was looked for.
    """
    given = Path(path).expanduser()
    if data_dir is None and given.is_file():
        return given.absolute()
    full = data_root(data_dir) / given
    if not full.is_file():
        raise DataError(
            f"`path` must name a file, but got {path!r} and there is no {full}. "
            "Correct it, or set `data_dir` or the environment variable AEPO_DATA_DIR to the folder of the data."
        )
    return full


def row_error(path: Path, row: str, field: str, rule: str, value: object) -> DataError:
    """Return the error for one value of a file: which file, row and field, what was expected and what was found.

    Args:
        path: The file.
        row: Which row or line, in words.
        field: Name of the field.
        rule: What the value must do, to follow the word "must".
        value: What was found instead; cut to 80 characters.
    """
    found = f"{type(value).__name__} {value!r:.80}"
    return DataError(f"{path}, {row}: `{field}` must {rule}, but got {found}. Correct the row or name another field.")
