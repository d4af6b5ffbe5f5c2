"""Words of the command line as people write them, made what Hydra reads.

Hydra has a grammar of its own for values: a path with `=`, an accent or a parenthesis is a syntax error in it, and a
folder named 007 is the number 7. What stands under the key of a path is a path.
"""

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from aepo_lightning.app.paths import PATH_KEY

_PREFIXES = "+~"
_QUOTES = ("'", '"')


def plain_words(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with paths quoted where they need it, and without bases in globs.

    Overrides come first: Hydra takes them in one piece only, but people write flags between them.

    Args:
        words: Flags and overrides. What Hydra understands as it stands is left alone.
    """
    words = _overrides_first(words)
    is_sweep = any(word in ("-m", "--multirun") for word in words)
    return [word if word.startswith("-") else _without_bases(_quoted_path(word, is_sweep)) for word in words]


def _overrides_first(words: Sequence[str]) -> list[str]:
    flags, others = get_args_parser().parse_known_args(words)
    overrides = [*flags.overrides, *(word for word in others if not word.startswith("-"))]
    rest = list(words)
    for word in overrides:
        rest.remove(word)
    return [*overrides, *rest]


def quoted(value: str | Path) -> str:
    """Return a value in quotes, which Hydra's grammar reads as it is."""
    # A backslash means something before a quote, and at the end, only.
    text = str(value).replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{text}\\'" if text.endswith("\\") else f"'{text}'"


def parse(word: str) -> Override | None:
    """Return an override as Hydra reads it; None if it cannot."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _quoted_path(word: str, is_sweep: bool) -> str:
    key, sign, value = word.partition("=")
    name = key.lstrip(_PREFIXES).rpartition(".")[2]
    if not sign or not value or not (PATH_KEY.search(name) or key == "name"):
        return word
    override = parse(word)
    if override is None:
        if value[0] == "[" and value[-1] != "]":
            return word
        candidate = f"{key}={_quoted_value(value, is_sweep)}"
        # What is broken in another way stays as it is: the message about it says where.
        return candidate if parse(candidate) is not None else word
    is_number = isinstance(override.value(), (bool, int, float))
    return f"{key}={quoted(value)}" if is_number else word


def _quoted_value(value: str, is_sweep: bool) -> str:
    """Return a path, a list of paths, or the paths of a sweep, each in quotes."""
    if value[0] == "[" and value[-1] == "]":
        return f"[{_quoted_value(value[1:-1], True)}]" if len(value) > 2 else value
    if is_sweep and "," in value:
        return ",".join(each if each[:1] in _QUOTES else quoted(each) for each in map(str.strip, value.split(",")))
    return value if value[0] in _QUOTES else quoted(value)


def _without_bases(word: str) -> str:
    """Let a glob over the options of a group not take those that begin with `_`, which others are based on."""
    override = parse(word) if "glob(" in word else None
    glob = override.value() if override is not None else None
    if override is None or not isinstance(glob, Glob) or any(each.startswith("_") for each in glob.include):
        return word
    include, exclude = ",".join(glob.include), ",".join([*glob.exclude, "_*"])
    return f"{override.get_key_element()}=glob([{include}],exclude=[{exclude}])"
