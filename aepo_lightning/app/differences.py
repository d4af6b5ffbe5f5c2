"""What differs between the saved configuration of a run and that of a new start, and what becomes of it.

Everything that differs is *applied* unless it stands in a table here: *refused*, because what is saved would mean
something else, or *ignored*, because its work is done. What is ignored keeps its saved value, so that the configuration
in the folder is the one that runs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from aepo_lightning.errors import ConfigError

_MOST_LINES = 40
_MOST_CHARACTERS = 60
_WHERE = ("output_root", "run_dir", "ckpt_path", "plan", "name", "num_threads", "time_limit_s")
"""Keys that say where and how to start, not what a run is."""

_SEED = "every question, tree and weight of the run derives from it"
_WEIGHTS = "the checkpoint holds the weights of the other one"
_STATE = "the checkpoint holds the state of the other one"
_REFUSED = {
    "seed": _SEED,
    "data.seed": _SEED,
    "data.task.seed": _SEED,
    "model._target_": _WEIGHTS,
    "model.architecture*": _WEIGHTS,
    "model.tokenizer*": _WEIGHTS,
    "module.adapter*": _WEIGHTS,
    "module.optimizer._target_": _STATE,
    "module.scheduler._target_": _STATE,
}
_ONLY_IN_ITS_FOLDER = ("seed", "data.seed", "data.task.seed")
"""What a new run from a checkpoint of another one may choose."""
_PENALTY, _TARGET = "algorithm.branch_policy.penalty_per_step", "callbacks.branch_penalty.target_concentration"
IGNORED = {
    "coldstart": "the run is past its cold start",
    "model.seed": "the weights come from the checkpoint",
    _PENALTY: "it moves towards `target_concentration` from where it was",
}
"""Nodes that keep their saved values once there is a checkpoint, and why."""
_MISSING = object()


class Verdict(StrEnum):
    """What becomes of a difference."""

    APPLIED = "applied"
    IGNORED = "ignored"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A key whose value is not the saved one."""

    key: str
    saved: Any
    wanted: Any
    verdict: Verdict
    reason: str = ""

    @property
    def change(self) -> str:
        """The key with both values, in words."""
        return f"{self.key}: {_shown(self.saved)} -> {_shown(self.wanted)}"

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.verdict:<8}  {self.change}{reason}"


def find_differences(
    saved: DictConfig, wanted: DictConfig, *, trained: bool, own_folder: bool, also: Sequence[str] = ()
) -> list[Difference]:
    """Return what differs, in the order of the configuration.

    Args:
        saved: In the folder of the run.
        wanted: Composed now.
        trained: Whether there is a checkpoint to go on from. Without one the stages before it are done again where they
            do not fit, so that everything can be applied.
        own_folder: Whether the run goes on in its folder, and is not a new one from its checkpoint.
        also: Keys that say how to start a run, and are compared nevertheless.
    """
    is_penalty_free = any(OmegaConf.select(cfg, _TARGET) is None for cfg in (saved, wanted))
    found = []
    for key, old, new in _unequal(saved, wanted, also):
        verdict, reason = Verdict.APPLIED, ""
        if trained and (cause := _refusal(key, old, new, own_folder)):
            verdict, reason = Verdict.REFUSED, cause
        elif trained and own_folder and (section := _section(key)) and not (section == _PENALTY and is_penalty_free):
            verdict, reason = Verdict.IGNORED, IGNORED[section]
        found.append(Difference(key=key, saved=old, wanted=new, verdict=verdict, reason=reason))
    return found


def settle(differences: Sequence[Difference], saved: DictConfig, wanted: DictConfig, origin: str) -> DictConfig:
    """Return the configuration that runs: the wanted one, with what is ignored as it was saved.

    Raises:
        ConfigError: If something is refused; every such key is listed.
    """
    if refused := [each for each in differences if each.verdict is Verdict.REFUSED]:
        raise ConfigError(
            f"A run that goes on must keep what it is made of, but this differs from {origin}:\n{listing(refused)}\n"
            "Give the saved values, or start a new run."
        )
    settled = wanted.copy()
    with open_dict(settled):
        for section in dict.fromkeys(_section(each.key) for each in differences if each.verdict is Verdict.IGNORED):
            OmegaConf.update(settled, section, OmegaConf.select(saved, section), merge=False, force_add=True)
    return settled


def listing(differences: Sequence[Difference | str]) -> str:
    """Return differences, or what has changed of them, as lines; long lists are cut."""
    lines = [f"  {each}" for each in differences[:_MOST_LINES]]
    more = len(differences) - _MOST_LINES
    return "\n".join((*lines, f"  and {more} more") if more > 0 else lines)


def _section(key: str) -> str:
    return next((section for section in IGNORED if key == section or key.startswith(f"{section}.")), "")


def _refusal(key: str, old: Any, new: Any, own_folder: bool) -> str:
    if key in _ONLY_IN_ITS_FOLDER and not own_folder:
        return ""
    if key == "module.scheduler._target_" and _MISSING in (old, new):
        return ""  # one that begins, or ends, with this start
    return next((reason for pattern, reason in _REFUSED.items() if fnmatchcase(key, pattern)), "")


def _unequal(saved: DictConfig, wanted: DictConfig, also: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
    """Yield keys whose values differ as they are written and as they are read.

    A value that refers to another key differs only where that one does, and is listed there.
    """
    old, new = dict(_leaves(saved)), dict(_leaves(wanted))
    for key in dict.fromkeys((*new, *old)):
        before, after = old.get(key, _MISSING), new.get(key, _MISSING)
        is_where = key.split(".")[0] in _WHERE and key not in also
        if is_where or _equal(before, after):
            continue
        if not _equal(_resolved(saved, key, before), _resolved(wanted, key, after)):
            yield key, before, after


def _leaves(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    def walk(node: Any, key: str) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict) and (node or not key):
            for name, child in node.items():
                yield from walk(child, f"{key}.{name}" if key else str(name))
        else:
            yield key, node

    yield from walk(OmegaConf.to_container(cfg, resolve=False), "")


def _resolved(cfg: DictConfig, key: str, raw: Any) -> Any:
    if not (isinstance(raw, str) and "${" in raw):
        return raw
    found = OmegaConf.select(cfg, key)
    return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found


def _equal(one: Any, other: Any) -> bool:
    """Compare as parts read it: 1 and 1.0 are one number, true and 1 are not one value, nothing is null."""
    one, other = (None if each is _MISSING else each for each in (one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def _shown(value: Any) -> str:
    text = "(not there)" if value is _MISSING else "null" if value is None else str(value)
    text = text if text.isprintable() else repr(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
