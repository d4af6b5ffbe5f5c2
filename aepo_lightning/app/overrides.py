"""Command-line overrides that Hydra refuses, explained in one message that names the key and the nearest valid ones."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException, OverrideParseException

NUM_SUGGESTIONS = 3
MIN_SIMILARITY = 0.6
SET_BY_THE_RUN = ("data_parallel_size", "dirpath", "save_dir")
"""Last parts of keys that nobody writes: the run knows its ranks and its folder."""
LEAF_WEIGHT = 0.7
"""Weight of the last part of a dotted key; the whole key has the rest. Groups are long, so they would drown it."""


def config_keys(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the dotted keys of a config, groups and values alike, in order.

    Args:
        config: Nested mappings, such as `OmegaConf.to_container(cfg, resolve=False)`.
    """
    keys: list[str] = []
    for name, value in config.items():
        keys.append(str(name))
        if isinstance(value, Mapping):
            keys += [f"{name}.{key}" for key in config_keys(value)]
    return tuple(keys)


def suggest(message_or_key: str, valid_keys: Sequence[str]) -> tuple[str, ...]:
    """Return up to three valid keys that resemble a key, best first. Empty if none does.

    A key without its group (`max_epoch`) finds the dotted one (`trainer.max_epochs`).

    Args:
        message_or_key: A key, or an error message whose first quoted word is one.
        valid_keys: Keys to choose from: dotted config keys or options of a group.
    """
    quoted = re.search(r"'([^']+)'", message_or_key)
    key = (quoted.group(1) if quoted else message_or_key).lower()
    scored = [(_similarity(key, valid.lower()), valid) for valid in dict.fromkeys(valid_keys)]
    close = sorted((-score, valid) for score, valid in scored if score >= MIN_SIMILARITY)
    return tuple(valid for _, valid in close[:NUM_SUGGESTIONS])


def explain_override_error(error: Exception, cfg_keys: Sequence[str]) -> str:
    """Turn an error of Hydra's `compose` into one message with the rule, what was given and what to do.

    Args:
        error: What `compose` raised: an unknown key or option, a missing or needless `+`, bad syntax, a key to delete
            that is not there. Anything else comes back with its own message.
        cfg_keys: Dotted keys of the config without overrides, see `config_keys`.
    """
    if isinstance(error, OverrideParseException):
        return _explain_syntax(error)
    if isinstance(error, MissingConfigException):
        return _explain_option(error)
    for pattern, explain in _COMPOSITION_ERRORS:
        match = re.search(pattern, str(error))
        if match:
            return explain(match, error, cfg_keys)
    return str(error).strip() or type(error).__name__


def explain_missing(missing_keys: Iterable[str]) -> str | None:
    """Name the values that must be given and are not, or return None if there are none.

    Args:
        missing_keys: Dotted keys of all values `???`, those that the run itself sets among them.
    """
    wanted = sorted(key for key in missing_keys if key.rpartition(".")[2] not in SET_BY_THE_RUN)
    if not wanted:
        return None
    given = " ".join(f"{key}=VALUE" for key in wanted)
    return f"{', '.join(f'`{key}`' for key in wanted)} must be given, but got nothing. Write {given}."


def single_jobs(overrides: Sequence[str], config_loader: ConfigLoader | None = None) -> Iterator[list[str]]:
    """Yield overrides without sweeps that have every value of every sweep once at least; ranges stay untried.

    Args:
        overrides: Of `--multirun`, such as `algorithm=aepo,grpo`.
        config_loader: Knows the options that a `glob(*)` stands for.

    Raises:
        OverrideParseException: If one cannot be parsed.
    """
    choices = []
    for override in OverridesParser.create(config_loader).parse_overrides(list(overrides)):
        if not override.is_sweep_override():
            choices.append([override.input_line or ""])
        elif override.is_choice_sweep():
            values = override.sweep_string_iterator()
            choices.append([f"{override.get_key_element()}={value}" for value in values])
    for number in range(max(map(len, choices), default=1)):
        yield [values[min(number, len(values) - 1)] for values in choices]


def _similarity(key: str, valid: str) -> float:
    """Return how alike two keys are, from 0 to 1 for equal ones."""
    whole = SequenceMatcher(a=key, b=valid).ratio()
    leaf = SequenceMatcher(a=key.rpartition(".")[2], b=valid.rpartition(".")[2]).ratio()
    return LEAF_WEIGHT * leaf + (1 - LEAF_WEIGHT) * whole


def _nearest(key: str, valid_keys: Sequence[str]) -> str:
    """Return a sentence that names the nearest valid keys, with a leading space, or nothing."""
    found = suggest(key, valid_keys)
    return f" Did you mean {' or '.join(f'`{name}`' for name in found)}?" if found else ""


def _explain_syntax(error: OverrideParseException) -> str:
    """Explain an override that cannot be parsed."""
    lines = error.message.splitlines()
    # Hydra puts a line that repeats the override before the reason, in some cases.
    reason = next(line for line in lines if not line.startswith("Error parsing override"))
    return (
        f"`{error.override}` must read key=value, but got a syntax error: {reason}. "
        "Put a value with = , : ( ) [ ] { } or quotes into quotes of its own: 'key=\"a=b\"'."
    )


def _explain_option(error: MissingConfigException) -> str:
    """Explain a config file that does not exist, such as an unknown option of a group."""
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    options = [each for each in error.options or () if not each.startswith("_")]  # bases are no choice
    if not group or not options:
        return str(error).strip().splitlines()[0]
    return (
        f"`{group}` must be one of {', '.join(options)}, but got {option or 'nothing'}."
        f"{_nearest(option, options) or f' Write {group}={options[0]}, for example.'}"
    )


def _explain_unknown_key(match: re.Match[str], error: Exception, cfg_keys: Sequence[str]) -> str:
    """Explain a key that the config lacks."""
    key = match.group("key")
    # A mapping as value (trainer={a: 1}) names its bad key only in the cause.
    inner = str(getattr(error.__cause__, "full_key", None) or "")
    if inner.startswith(f"{key}."):
        return f"`{inner}` must be a key of the config, but there is none.{_nearest(inner, cfg_keys)}"
    return (
        f"`{key}` must be a key of the config, but there is none.{_nearest(key, cfg_keys)} "
        f"To add a new key, write {match.group('added')}."
    )


def _explain_missing_plus(match: re.Match[str], _: Exception, __: Sequence[str]) -> str:
    """Explain a group that is not in the defaults list."""
    added = match.group("added")
    return f"`{match.group('key')}` must be added with a +, because it is not among the defaults. Write {added}."


def _explain_needless_plus(match: re.Match[str], error: Exception, _: Sequence[str]) -> str:
    """Explain a + in front of something that exists already."""
    key = match.group("key")
    offered = re.search(r"remove \+ prefix: '([^']+)'", str(error))
    plain = offered.group(1) if offered else f"{key}=OPTION"
    return f"`{key}` must be set without a +, because it exists already. Write {plain}."


def _explain_force_add(match: re.Match[str], _: Exception, __: Sequence[str]) -> str:
    """Explain ++ in front of a group."""
    override = match.group("key")
    return f"`{override}` must not begin with ++, because it chooses from a group. Write {override.lstrip('+')}."


def _explain_delete(match: re.Match[str], __: Exception, cfg_keys: Sequence[str]) -> str:
    """Explain a ~ in front of something that is not there."""
    key, _, option = match.group("key").partition("=")
    if option and key in cfg_keys:
        return f"`~{key}` must name the option in use, but got {option}. Write ~{key} to delete whichever it is."
    return f"`~{key}` must name something in the config, but there is no such thing.{_nearest(key, cfg_keys)}"


_Explain = Callable[[re.Match[str], Exception, Sequence[str]], str]

_COMPOSITION_ERRORS: tuple[tuple[str, _Explain], ...] = (
    (r"Could not override '(?P<key>[^']+)'[^+]*default list use (?P<added>\+.*)", _explain_missing_plus),
    (r"Could not override '(?P<key>[^']+)'[^+]*your config use (?P<added>\+.*)", _explain_unknown_key),
    (r"An item is already at '(?P<key>[^']+)'", _explain_needless_plus),
    (r"Multiple values for (?P<key>[^\s.]+)\.", _explain_needless_plus),
    (r"force-add of config groups is not supported: '(?P<key>[^']+)'", _explain_force_add),
    (r"Could not delete(?: from config\.)? '(?P<key>[^']+)'", _explain_delete),
)
"""What Hydra says when it composes, and what it means. Hydra 1.3 has one exception class for all of these."""
