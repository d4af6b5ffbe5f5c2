"""What fits the terms of a reward, by their names."""

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Real

from aepo_lightning.contracts.reward import MAX_REWARD, TERM_NAME
from aepo_lightning.errors import ConfigError


def check_settings(
    terms: Mapping[str, object],
    weights: Mapping[str, float],
    clip: Sequence[float | None] | None,
    only_with: Mapping[str, str],
    limits: Mapping[str, object],
) -> None:
    """Refuse settings of a sum that do not fit its terms.

    Raises:
        ConfigError: If there is no term, a name is none, something names no term, a number is not finite, or a term
            counts only with one that does so itself.
    """
    _check_terms(terms)
    for setting, named in (("weights", weights), ("only_with", only_with), ("limits", limits)):
        _check_known(setting, named, terms)
    _check_known("only_with", only_with.values(), terms)
    for name, weight in weights.items():
        if not _is_number(weight):
            raise ConfigError(f"`weights.{name}` must be a finite number, but got {weight!r:.80}.")
    _check_clip(clip)
    for name, other in only_with.items():
        if other in only_with:
            raise ConfigError(
                f"`only_with.{name}` must name a term that always counts, but got {other!r}, which counts only with "
                f"{only_with[other]!r}. Name that one."
            )


def _check_terms(terms: Mapping[str, object]) -> None:
    if not terms:
        raise ConfigError("`terms` must have at least one, but got none. Add one, such as `AnswerTerm`.")
    for name, term in terms.items():
        if not isinstance(name, str) or not TERM_NAME.fullmatch(name):
            raise ConfigError(
                f"`terms` must have names of letters, digits and underscores, but got {name!r:.80}. Metrics bear them."
            )
        if isinstance(term, type) or not callable(term):
            raise ConfigError(
                f"`terms.{name}` must be a term, a reward or a function, but got {term!r:.80}. Pass an instance, or "
                f"`terms.{name}=null` out of the mapping."
            )


def _check_known(setting: str, names: Iterable[object], terms: Mapping[str, object]) -> None:
    for name in names:
        if name not in terms:
            near = get_close_matches(str(name), list(terms), n=1)
            advice = f"Did you mean `{near[0]}`?" if near else f"There are {', '.join(terms)}."
            raise ConfigError(f"`{setting}` must name terms of the reward, but got {name!r}. {advice}")


def _check_clip(clip: Sequence[float | None] | None) -> None:
    if clip is None:
        return
    is_pair = isinstance(clip, Sequence) and not isinstance(clip, str) and len(clip) == 2
    if not is_pair or not all(bound is None or _is_number(bound) for bound in clip):
        raise ConfigError(f"`clip` must be a lower and an upper bound or null, but got {clip!r:.80}.")
    low, high = clip
    if low is not None and high is not None and low >= high:
        raise ConfigError(f"`clip` must have a lower bound below the upper one, but got {low} and {high}.")


def _is_number(value: object) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    return math.isfinite(value) and abs(float(value)) <= MAX_REWARD
