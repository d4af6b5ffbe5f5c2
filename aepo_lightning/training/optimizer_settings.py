"""Settings of optimizer and scheduler over a resume.

A checkpoint restores both as they were, rates and all. What the user has set otherwise since is applied on top; what
has changed in the course of training, such as a decayed rate, goes on from where it was.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

SETTINGS_KEY = "aepo_optimizer_settings"
"""Where a checkpoint holds them."""

Settings = dict[str, Any]
"""`groups`: of each group of parameters, what the optimizer was made with. `scheduler`: its own, or None."""

_RATES = ("base_lrs", "_last_lr")
_PLAIN = (bool, int, float, str)


class ResumedSettings:
    """What optimizer and scheduler of a module were made with, in this start and in the checkpoint."""

    def __init__(self) -> None:
        self._own: Settings = {}
        self._saved: Settings | None = None
        self._is_restored = False

    def made(self, optimizer: Optimizer, scheduler: LRScheduler | None, rates: Sequence[float]) -> None:
        """Note what was made, as `settings_of` takes it."""
        self._own = settings_of(optimizer, scheduler, rates)

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Add them to a checkpoint."""
        checkpoint[SETTINGS_KEY] = self._own

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Note those of a checkpoint, which restores the optimizer before the training starts."""
        self._saved, self._is_restored = checkpoint.get(SETTINGS_KEY), True

    def apply(self, optimizer: Optimizer, scheduler: LRScheduler | None) -> list[str]:
        """Apply what differs, once after a checkpoint; return it, one line each."""
        is_restored, self._is_restored = self._is_restored, False
        return apply_changes(optimizer, scheduler, self._saved, self._own) if is_restored else []


def settings_of(optimizer: Optimizer, scheduler: LRScheduler | None, rates: Sequence[float]) -> Settings:
    """Return what optimizer and scheduler were made with, as plain values.

    Args:
        optimizer: As it was made, before a step.
        scheduler: Its scheduler, if there is one.
        rates: Learning rate of each group before the scheduler changed it.
    """
    groups = [
        {name: value for name, value in group.items() if name != "initial_lr" and _is_plain(value)} | {"lr": rate}
        for group, rate in zip(optimizer.param_groups, rates, strict=True)
    ]
    return {"groups": groups, "scheduler": None if scheduler is None else _constants(scheduler)}


def rates_of(optimizer: Optimizer) -> list[float]:
    """Return the learning rate of each group of parameters."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def apply_changes(
    optimizer: Optimizer, scheduler: LRScheduler | None, saved: Settings | None, own: Settings
) -> list[str]:
    """Apply what differs between the settings of a checkpoint and those of this start.

    Args:
        optimizer: Restored.
        scheduler: Restored, too, if the checkpoint had one.
        saved: Settings in the checkpoint. None if it has none; what it restored is taken for them.
        own: Settings of this start.

    Returns:
        What was applied, one line each.
    """
    if saved is None:
        saved = _restored(optimizer)
    lines = []
    for index, (group, wanted) in enumerate(zip(optimizer.param_groups, own["groups"], strict=False)):
        before = saved["groups"][index] if index < len(saved["groups"]) else {}
        for name, value in wanted.items():
            if _differs(before.get(name, value), value):
                lines.append(f"{name} {before[name]} -> {value}")
                if name != "lr":
                    group[name] = value
        _set_rate(group, scheduler, index, before.get("lr"), wanted["lr"], saved["scheduler"] is not None)
    if scheduler is not None and saved["scheduler"] is not None:
        lines += _apply_constants(scheduler, saved["scheduler"], own["scheduler"])
    if isinstance(scheduler, LambdaLR) and lines:
        _evaluate(scheduler)
    return list(dict.fromkeys(lines))


def _restored(optimizer: Optimizer) -> Settings:
    rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    had_scheduler = any("initial_lr" in group for group in optimizer.param_groups)
    # What the schedule was made with cannot be told from where it stands.
    return settings_of(optimizer, None, rates) | {"scheduler": {} if had_scheduler else None}


def _set_rate(
    group: dict[str, Any], scheduler: LRScheduler | None, index: int, before: float | None, wanted: float, had: bool
) -> None:
    """Set the rate of a group, as far along its schedule as it was."""
    if scheduler is None:
        group.pop("initial_lr", None)
        if had or (before is not None and before != wanted):
            _fill(group, "lr", wanted)
        return
    if not had:  # the schedule begins with this start
        group["initial_lr"] = wanted
        _fill(group, "lr", float(scheduler.get_last_lr()[index]))
    elif before is not None and before != wanted:
        _fill(group, "lr", float(group["lr"]) * wanted / before if before else wanted)
        group["initial_lr"] = wanted
        for each in _with_inner(scheduler):
            each.base_lrs[index] = wanted
            each._last_lr = [float(other["lr"]) for other in each.optimizer.param_groups]


def _apply_constants(scheduler: LRScheduler, saved: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, value in own.items():
        before = saved.get(name, value)
        if _differs(before, value):
            setattr(scheduler, name, value)
            lines.append(f"{type(scheduler).__name__}.{name} {before} -> {value}")
    return lines


def _evaluate(scheduler: LambdaLR) -> None:
    """Take the rates of this very step from the schedule: it says them in closed form."""
    for group, rate, factor in zip(
        scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    ):
        _fill(group, "lr", float(rate) * float(factor(scheduler.last_epoch)))
    scheduler._last_lr = [float(group["lr"]) for group in scheduler.optimizer.param_groups]


def _with_inner(scheduler: LRScheduler) -> Iterator[LRScheduler]:
    """Yield a scheduler, and those that it chains."""
    if hasattr(scheduler, "base_lrs"):
        yield scheduler
    for each in getattr(scheduler, "_schedulers", ()):
        yield from _with_inner(each)


def _constants(scheduler: LRScheduler) -> dict[str, Any]:
    return {name: value for name, value in scheduler.state_dict().items() if name not in _RATES and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, _PLAIN)


def _differs(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return list(one) != list(other)
    return bool(one != other)


def _fill(group: dict[str, Any], name: str, value: float) -> None:
    if isinstance(group[name], torch.Tensor):
        group[name].fill_(value)
    else:
        group[name] = value
