"""Names for what decides a rollout, so that a run that goes on knows which of the saved trees are still its own.

A name is a digest of a description. The description of an object is its class and its settings: the fields of a
dataclass, but for those with `is_described: False` in their metadata, of any other object its arguments as far as it
keeps them, and its words. It holds no address and no state, so that another process describes the same settings in the
same words.
"""

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from hashlib import blake2b
from pathlib import PurePath
from types import CodeType
from typing import Any

from aepo_lightning.contracts.chat_format import ChatFormat
from aepo_lightning.contracts.question import Question

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_WORDS = (str, bytes, Enum, PurePath)
"""What an object keeps beside its arguments counts if it is of these types: numbers and switches may be its state."""
_MOST_ITEMS = 4096
_DEEPEST = 12
_ADDRESS = re.compile("0x[0-9a-fA-F]+")


def question_digest(question: Question, chat_format: ChatFormat) -> str:
    """Return a digest of what is asked: the prompt in tokens, the accepted answers, the documents and the metadata."""
    prompt = chat_format.encode_prompt(question.messages)
    return digest_of(prompt, question.messages, question.answers, question.documents, question.metadata)


def digest_of(*values: object) -> str:
    """Return a digest of the descriptions of some values, the same in every process."""
    return blake2b(describe(values).encode(errors="surrogatepass"), digest_size=8).hexdigest()


def describe(value: object, above: tuple[int, ...] = ()) -> str:
    """Return the type and the settings of a value as text, the same in every process.

    Args:
        value: Anything.
        above: Identities of what it lies within.
    """
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, (type, Enum, PurePath)):
        return _name(value) if isinstance(value, type) else str(value)
    if id(value) in above or len(above) > _DEEPEST:
        return f"<{_name(type(value))}>"
    above = (*above, id(value))
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return _describe_collection(value, above)
    inner = ", ".join(f"{name}={describe(each, above)}" for name, each in _settings(value))
    if not inner and type(value).__repr__ is not object.__repr__:
        return _ADDRESS.sub("", repr(value))
    return f"{_name(value if inspect.isroutine(value) else type(value))}({inner})"


def _describe_collection(value: Collection[Any], above: tuple[int, ...]) -> str:
    items = list(value.items() if isinstance(value, Mapping) else value)
    step = -(-len(items) // _MOST_ITEMS)  # of a large corpus, a sample
    described = [repr(each) if type(each) is int else describe(each, above) for each in items[:: max(1, step)]]
    is_ordered = isinstance(value, (list, tuple))
    return f"{len(items)}[{', '.join(described if is_ordered else sorted(described))}]"


def _settings(value: Any) -> Iterator[tuple[str, object]]:
    """Yield what an object or a function was made of, by name."""
    if is_dataclass(value):
        for field in fields(value):
            if field.init and field.metadata.get("is_described", True):
                yield field.name, getattr(value, field.name)
    elif isinstance(value, partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif inspect.ismethod(value):
        yield from (("self", value.__self__), ("function", value.__func__))
    elif inspect.isfunction(value):
        yield "code", _code(value.__code__)
        yield "defaults", (value.__defaults__, value.__kwdefaults__)
        yield "closure", [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
    elif not inspect.isroutine(value):
        yield from _kept(value)


def _kept(value: Any) -> Iterator[tuple[str, object]]:
    """Yield what an object keeps of its arguments, under their names or with an underscore, and its words."""
    arguments = _parameters(type(value))
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    for name in sorted({*getattr(value, "__dict__", {}), *slots}):
        each = getattr(value, name, None)
        if name.lstrip("_") in arguments or isinstance(each, _WORDS):
            yield name, each


def _parameters(kind: Callable[..., Any]) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(kind).parameters)
    except (TypeError, ValueError):  # of a class that is not written in Python
        return frozenset()


def _code(code: CodeType) -> tuple[object, ...]:
    constants = [_code(each) if isinstance(each, CodeType) else each for each in code.co_consts]
    return code.co_code.hex(), code.co_names, constants


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
