"""Parts of a user in the configuration: functions as parts, targets that cannot be found, callbacks that fail."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any

from hydra._internal.utils import _locate
from lightning.pytorch import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from aepo_lightning.app.overrides import suggest
from aepo_lightning.contracts.blame import describe_failure, is_own, part_name
from aepo_lightning.errors import AepoError, CallbackError, ConfigError


def find_target(path: Any, key: str) -> Any:
    """Return what a `_target_` names.

    Args:
        path: The dotted path.
        key: Where it stands in the configuration, for the message; empty if the caller says it.

    Raises:
        ConfigError: If it cannot be imported, or is no class or function.
    """
    name = f"{key}._target_".lstrip(".")
    try:
        target = _locate(path)
    except (ImportError, AttributeError, ValueError) as error:
        reason = str(error).strip().replace("\n", " ")
        raise ConfigError(
            f"`{name}` must be something to import, but {path!r} is not: {reason.rstrip('.?')}. Modules are looked for "
            "in the working directory, too."
        ) from error
    if not callable(target):
        raise ConfigError(f"`{name}` must be a class or a function, but {path!r} is {target!r:.80}.")
    return target


def with_functions(node: DictConfig, key: str) -> DictConfig:
    """Return a node of the configuration in which every function that is a part itself stands for itself.

    A `_target_` is called, unless it is a function (decorated or not, or an object that can be called) that needs more
    arguments than stand beside it: `{_target_: my_rewards.contains, bonus: 0.1}` is the function, with the bonus given.

    Args:
        node: A part that a user may have written, with those inside it.
        key: Where it stands in the configuration, for messages.

    Raises:
        ConfigError: If a target cannot be found.
    """
    found = node.copy()
    for place, inner in _with_targets(found, key):
        if "_partial_" in inner:
            continue
        target = find_target(inner._target_, place)
        if is_own(target):
            continue
        refuse_strangers(target, inner, place)
        if not inspect.isclass(target) and _lacks_arguments(target, inner):
            with open_dict(inner):
                inner._partial_ = True
    return found


def without_settings_of(other: type, node: Any) -> DictConfig:
    """Return a node without the settings of a class that is not its target, where its target does not take them.

    `reward._target_=my_rewards.contains` leaves those of the paper's reward in place, and nobody means them.

    Args:
        other: The data class whose settings the node may still have.
        node: That of the reward.

    Raises:
        ConfigError: If it has no target, or that cannot be found.
    """
    if not (isinstance(node, DictConfig) and "_target_" in node):
        raise ConfigError(f"`reward` must be a mapping with a `_target_`, but got {node!r:.80}. Write reward=paper.")
    target = find_target(node._target_, "reward")
    if target is other or (signature := _signature(target)) is None:
        return node
    found = node.copy()
    with open_dict(found):
        for name in {each.name for each in fields(other)} - set(signature.parameters):
            found.pop(name, None)
    return found


def _with_targets(node: Any, key: str) -> Iterator[tuple[str, DictConfig]]:
    if isinstance(node, DictConfig) and not node._is_none():
        if "_target_" in node:
            yield key, node
        for name in node:
            if not OmegaConf.is_missing(node, name):
                yield from _with_targets(node._get_node(name), f"{key}.{name!s}")
    elif isinstance(node, ListConfig) and not node._is_none():
        for index in range(len(node)):
            yield from _with_targets(node._get_node(index), f"{key}[{index}]")


def _signature(target: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):  # some of C have none
        return None


def refuse_strangers(target: Callable[..., Any], settings: Iterable[Any], key: str = "") -> None:
    """Refuse arguments that a target does not take.

    Args:
        target: What is called; arguments that are bound to it count as well.
        settings: Names of the others.
        key: Where it stands in the configuration; empty if that is not known.

    Raises:
        ConfigError: If there are some.
    """
    bound = target.keywords if isinstance(target, partial) else {}
    function = target.func if isinstance(target, partial) else target
    signature = _signature(function)
    if signature is None or any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return
    known = list(signature.parameters)
    names = [str(name) for name in (*bound, *settings)]
    strangers = [name for name in names if name not in known and not name.startswith("_")]
    if not strangers:
        return
    where = f"`{key}`" if key else f"The settings of `{part_name(function)}`"
    near = " or ".join(f"`{name}`" for name in suggest(strangers[0], known))
    advice = f"Did you mean {near}?" if near else f"Take it out: ~{key}.{strangers[0]}." if key else "Take it out."
    raise ConfigError(
        f"{where} must have arguments that `{part_name(function)}` takes, but has `{strangers[0]}`. {advice}"
    )


def _lacks_arguments(function: Callable[..., Any], node: DictConfig) -> bool:
    """Return whether a function needs arguments that do not stand beside it."""
    if (signature := _signature(function)) is None:
        return False
    given = {str(name) for name in node}
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [p.name for p in signature.parameters.values() if p.kind in kinds and p.default is p.empty]
    return any(name not in given for name in needed)


def check_callback(name: str, built: object) -> Callback:
    """Return a callback of the configuration.

    Raises:
        ConfigError: If it is something else.
    """
    if not isinstance(built, Callback):
        raise ConfigError(
            f"`callbacks.{name}` must be a `lightning.pytorch.Callback`, but its `_target_` gave {built!r:.80}. Name a "
            "class that inherits from it."
        )
    return built


@contextmanager
def naming_callbacks() -> Iterator[None]:
    """Tell what a callback of a user raises with its name and hook.

    Raises:
        CallbackError: If one raised.
    """
    try:
        yield
    except AepoError:
        raise
    except Exception as error:
        if (found := _failed_hook(error)) is None:
            raise
        callback, hook = found
        raise CallbackError(
            f"The callback `{part_name(callback)}` must not fail, but raised {describe_failure(error)} in `{hook}`."
        ) from error


def _failed_hook(error: Exception) -> tuple[object, str] | None:
    """Return the user's callback in whose hook an exception was raised, if that is where it came from."""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name.startswith("_call_callback") and "callback" in frame.f_locals:
            callback, hook = frame.f_locals["callback"], frame.f_locals.get("hook_name", "a hook")
            package = part_name(callback).partition(".")[0]
            return None if is_own(callback) or package == "lightning" else (callback, str(hook))
        trace = trace.tb_next
    return None
