"""Tests of what comes with an extra: left out where it is not installed, and imported by the worker that runs them."""

from importlib.util import find_spec

import pytest


def needs(module, extra):
    """Skip a test, or at the top of a file all of its tests, where a module is not installed; nothing is imported."""
    if find_spec(module) is None:
        pytest.skip(f"needs the `{extra}` extra", allow_module_level=True)
