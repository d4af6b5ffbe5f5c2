"""A folder of configuration files of one's own (`--config-dir`): where it is, and what is wrong with a file in it."""

from pathlib import Path

import yaml

from aepo_lightning.app.words import quoted


def folder_problem(folder: str | None) -> str | None:
    """Return why a folder cannot be searched for configuration files, or None."""
    if folder is None or Path(folder).is_dir():
        return None
    what = "is a file" if Path(folder).exists() else "does not exist"
    return f"`--config-dir` must name a folder with folders such as reward/ in it, but {folder} {what}. Correct it."


def search_path(folder: str | None) -> list[str]:
    """Return the override that has a folder searched as well, if one is named."""
    if folder is None:
        return []
    return [f"hydra.searchpath=[{quoted(f'file://{Path(folder).absolute()}')}]"]


def explain_file(error: yaml.YAMLError | UnicodeDecodeError, folder: str | None) -> str:
    """Return in one message which configuration file cannot be read, and where.

    Args:
        error: What reading it raised.
        folder: That of `--config-dir`; None if there is none.
    """
    if isinstance(error, UnicodeDecodeError):
        files = [] if folder is None else sorted(Path(folder).rglob("*.yaml"))
        named = ", ".join(str(path) for path in files if not _is_text(path)) or "a file of the configuration"
        return f"{named} must be UTF-8, but is not: {error}. Save it as UTF-8."
    mark = getattr(error, "problem_mark", None)
    place = "A file of the configuration" if mark is None else f"{mark.name}, line {mark.line + 1}"
    problem = getattr(error, "problem", None) or str(error)
    return f"{place} must be YAML, but is not: {problem}. Repair it."


def _is_text(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True
