"""Where data files are looked for, and how a fault in one is named."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from aepo_lightning.contracts.question import Split
from aepo_lightning.errors import ConfigError, DataError

_CHECKOUT = Path(__file__).resolve().parents[2]

FilePaths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""One file, one pattern such as `data/*.jsonl`, or a list of both."""


class BrokenRuleError(ValueError):
    """A value that a field must not have, told by one who does not know where it stands."""

    def __init__(self, rule: str, part: str = "", value: object = None) -> None:
        """Keep what is wrong.

        Args:
            rule: What the value must do, to follow the word "must".
            part: Which part of the field is meant, such as `[0]`. Empty for the whole.
            value: What was found in that part.
        """
        super().__init__(f"must {rule}")
        self.rule, self.part, self.value = rule, part, value


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


def find_files(paths: FilePaths, data_dir: str | None, split: Split = "train") -> list[Path]:
    """Return the absolute paths of data files, in the order in which they are named; those of a pattern by name.

    Args:
        paths: As they were given. In a pattern, `*` and `?` stand for parts of a name and `**` for any folders. A file
            that exists under exactly this name is no pattern. A file that is found twice is read once.
        data_dir: Is looked at first if the caller names one. Without it, the data folder of `data_root` comes last.
        split: Whose files they are, for messages.

    Raises:
        ConfigError: If that is neither a text nor a list of texts, or an empty list.
        DataError: If a path or pattern fits no file, with where it was looked for.
    """
    setting = "path" if split == "train" else "val_path"
    listed = [paths] if isinstance(paths, str | os.PathLike) else paths
    if (
        not isinstance(listed, Sequence)
        or not listed
        or not all(isinstance(each, str | os.PathLike) for each in listed)
    ):
        raise ConfigError(
            f"`{setting}` must be a file, a pattern or a list of them, but got {paths!r}. Write {setting}=my.jsonl."
        )
    found = [file for path in listed for file in _find(os.fspath(path), data_dir, setting)]
    return list(dict.fromkeys(found))


def _find(path: str, data_dir: str | None, setting: str) -> list[Path]:
    places = find_places(path, data_dir)
    for place in places:
        if fitting := files_at(place, path):
            return fitting
    if folder := next((place for place in places if place.is_dir()), None):
        raise DataError(f"`{setting}` must name files, but {folder} is a folder. Write {setting}='{path}/*.jsonl'.")
    raise DataError(
        f"`{setting}` must name a file, but got {path!r} and there is no {' and no '.join(map(str, places))}. "
        "Correct it, or set `data_dir` or the environment variable AEPO_DATA_DIR to the folder of the data."
    )


def find_places(path: str, data_dir: str | None) -> list[Path]:
    """Return where a path or a pattern is looked for, as absolute paths in the order in which that is done."""
    given = Path(path).expanduser()
    roots = [Path.cwd(), data_root(data_dir).absolute()]
    return list(dict.fromkeys(root / given for root in (reversed(roots) if data_dir else roots)))


def files_at(place: Path, given: str) -> list[Path]:
    """Return the file of exactly this name, else the files that fit it, by name, if what was given is a pattern.

    Args:
        place: One of `find_places`.
        given: What was looked for there.
    """
    if place.is_file():
        return [place]
    if not glob.has_magic(given):
        return []
    return sorted(path for path in map(Path, glob.glob(str(place), recursive=True)) if path.is_file())


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
