"""Which `_target_`s of a configuration that came with a folder may be called.

A configuration on disk may be somebody else's, and what it names would be called with its arguments. So only the parts
that this library offers are, and what the user allows by name. Names are resolved to what they stand for: a module that
imports `os` makes nothing of `os` a part.
"""

import re
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.resources import files
from types import ModuleType
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from aepo_lightning.app.saved_config import mappings
from aepo_lightning.errors import ConfigError

CONF = "aepo_lightning.conf"
_ROOMS = (
    "advantages",
    "branching",
    "budgets",
    "callbacks",
    "chat_formats",
    "engines",
    "objectives",
    "rewards",
    "rollout",
    "tasks",
    "tools",
)
_STARTS_PROGRAMS = ("aepo_lightning.tools.MCPServer", "aepo_lightning.tools.mcp_tools")
"""Parts that run what their arguments say: never without being allowed."""
_OTHERS = re.compile(
    r"torch\.optim(\.lr_scheduler)?\.[A-Z]\w*"
    r"|transformers\.get_\w*schedule\w*"
    r"|lightning\.pytorch\.(Trainer|(callbacks|loggers|strategies)\.[A-Z]\w*)"
)
"""Parts of the libraries that this one stands on."""


def check_targets(cfg: DictConfig, origin: str, allowed: Sequence[str] = (), sections: Sequence[str] = ()) -> None:
    """Refuse a configuration that names what is neither a part of this library nor allowed.

    Args:
        cfg: What was read.
        origin: Where it was read, for the message.
        allowed: Names of functions and classes, or of modules and packages whose own ones are meant.
        sections: Dotted keys of the nodes that will be built. Empty looks at all.

    Raises:
        ConfigError: If there is one; all are named. If a value cannot be read, so that nobody knows what it names.
    """
    nodes = [OmegaConf.select(cfg, section) for section in sections] if sections else [cfg]
    found = dict.fromkeys(target for node in nodes for target in find_targets(_resolved(node, origin)))
    bad = [target for target in found if not is_allowed(target, allowed)]
    if bad:
        raise ConfigError(
            f"{origin} must name parts of this library only, but would call {', '.join(bad)}. If you trust what is "
            f"there, allow it: {' '.join(f'--allow {target}' for target in bad)}."
        )


def _resolved(node: Any, origin: str) -> Any:
    """Return plain values: what a reference stands for, and what a resolver makes, is what would be built."""
    try:
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"{origin} must have values that can be read here, but: {reason}. Set what it names."
        ) from error


def add_allow(parser: ArgumentParser) -> None:
    """Add the flag with which a user allows more."""
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="NAME",
        help="a function, class or module beside this library that the configuration of the run may call",
    )


def find_targets(node: Any) -> Iterator[str]:
    """Return every `_target_` in a nest of mappings and lists."""
    return (str(each["_target_"]) for each in mappings(node) if "_target_" in each)


def is_allowed(target: str, allowed: Sequence[str] = ()) -> bool:
    """Return whether a name may be called. Only modules of this library and allowed ones are imported to find out."""
    if target in allowed:
        return True
    if target in _STARTS_PROGRAMS:
        return False
    if target in _offered() or _OTHERS.fullmatch(target):
        return True
    if target.startswith("aepo_lightning."):
        return _is_a_part_by_another_name(target)
    packages = [each for each in allowed if target.startswith(f"{each}.")]
    return any(_is_own(target, package) for package in packages)


@cache
def _offered() -> frozenset[str]:
    """Return what `conf/` names, and the classes that rooms offer."""
    named = set()
    for group in files(CONF).iterdir():
        for file in group.iterdir() if group.is_dir() else [group]:
            if file.name.endswith(".yaml"):
                named |= set(re.findall(r"_target_: *([\w.]+)", file.read_text(encoding="utf-8")))
    for room in _ROOMS:
        module = import_module(f"aepo_lightning.{room}")
        classes = [name for name in module.__all__ if isinstance(getattr(module, name), type)]
        named |= {f"aepo_lightning.{room}.{name}" for name in classes}
    return frozenset(named)


def _is_a_part_by_another_name(target: str) -> bool:
    try:
        found = get_object(target)
    except (ImportError, AttributeError, ValueError):
        return False
    programs = [get_object(name) for name in _STARTS_PROGRAMS]
    if isinstance(found, ModuleType) or any(found == each for each in programs):
        return False
    last = target.rpartition(".")[2]
    return any(found == get_object(name) for name in _offered() if name.rpartition(".")[2] == last)


def _is_own(target: str, package: str) -> bool:
    """Return whether a name below an allowed module is defined in that package, and not merely imported there."""
    try:
        home = getattr(get_object(target), "__module__", None)
    except (ImportError, AttributeError, ValueError):
        return False
    return isinstance(home, str) and home.partition(".")[0] in (package.partition(".")[0], "aepo_lightning")
