"""Annotations are checked while tests run; those without the shape of an array cost a tenth of what shapes do.

The import hook of jaxtyping wraps every function of the library in what binds the sizes of axes, whether arrays stand
in its signature or not. Here beartype alone checks those without, in the same way: arguments, then what is returned.
"""

import dataclasses
import functools
import inspect
from typing import get_args

import jaxtyping
from beartype import beartype

_with_shapes = jaxtyping.jaxtyped


def install():
    """Have the import hook choose between both; before the library is imported."""
    jaxtyping.jaxtyped = checked


def checked(fn=None, *, typechecker=None):
    """Stand in for `jaxtyping.jaxtyped` where it decorates functions and classes of the library."""
    if fn is None:
        return functools.partial(checked, typechecker=typechecker)
    if typechecker is None or isinstance(fn, str):
        return _with_shapes(fn, typechecker=typechecker)
    if inspect.isclass(fn):
        return _checked_class(fn, typechecker)
    if isinstance(fn, (classmethod, staticmethod, property)) or _may_have_shapes(fn):
        return _with_shapes(fn, typechecker=typechecker)
    return _without_shapes(fn)


def _checked_class(cls, typechecker):
    if dataclasses.is_dataclass(cls) and "__init__" in vars(cls) and not _may_have_shapes(cls.__init__):
        if not hasattr(cls.__init__, "__wrapped__"):  # or it is the author's own, and checked as a method already
            cls.__init__ = _without_shapes(cls.__init__)
        return cls
    return _with_shapes(cls, typechecker=typechecker)


def _without_shapes(fn):
    strict = beartype(fn)
    if strict is fn:
        return fn  # nothing is annotated

    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        __tracebackhide__ = True
        return (fn if jaxtyping.config.jaxtyping_disable else strict)(*args, **kwargs)

    return wrapper


def _may_have_shapes(fn):
    """Whether an array stands in the signature, or something that is not known before the function is called."""
    return inspect.isgeneratorfunction(fn) or any(map(_has_shape, getattr(fn, "__annotations__", {}).values()))


def _has_shape(hint):
    if isinstance(hint, (list, tuple)):  # arguments of a Callable
        return any(map(_has_shape, hint))
    is_open = isinstance(hint, str) or type(hint).__name__ == "ForwardRef"
    is_array = inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)
    return is_open or is_array or any(map(_has_shape, get_args(hint)))
