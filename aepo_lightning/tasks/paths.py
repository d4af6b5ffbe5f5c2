"""Where data files are looked for, and how a fault in one is named."""

import os
from pathlib import Path

from aepo_lightning.contracts.question import Split
from aepo_lightning.errors import DataError

_CHECKOUT = Path(__file__).resolve().parents[2]


def data_root(data_dir: str | None) -> Path:
    """Return the folder of data files, where relative paths start that the working directory does not have.

    Args:
        data_dir: The folder, if the caller knows it. Else the environment variable `AEPO_DATA_DIR`, else `shared/data`
            beside the checkout if there is one, else the current directory.
    """
    given = data_dir or os.environ.get("AEPO_DATA_DIR")
    if given:
        return Path(given).expanduser()
    beside = _CHECKOUT.parent / "shared" / "data"
    return beside if beside.is_dir() else Path.cwd()


def find_file(path: str, data_dir: str | None, split: Split = "train") -> Path:
    """Return the absolute path of a data file, from the first folder that has it.

    Args:
        path: As it was given.
        data_dir: Is looked at first if the caller names one. Without it, the data folder of `data_root` comes last.
        split: Whose file it is, for the message.

    Raises:
        DataError: If there is no such file, with where it was looked for.
    """
    given = Path(path).expanduser()
    roots = [Path.cwd(), data_root(data_dir).absolute()]
    places = list(dict.fromkeys(root / given for root in (reversed(roots) if data_dir else roots)))
    for place in places:
        if place.is_file():
            return place
    setting = "path" if split == "train" else "val_path"
    raise DataError(
        f"`{setting}` must name a file, but got {path!r} and there is no {' and no '.join(map(str, places))}. "
        "Correct it, or set `data_dir` or the environment variable AEPO_DATA_DIR to the folder of the data."
    )


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
