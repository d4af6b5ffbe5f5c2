"""Many cases of one law: a few in every run of the suite, the others in the slow one."""

import pytest


def quick(cases, *names):
    """Parameters by name (a mapping), of which those that are not named here are slow."""
    assert set(names) <= set(cases), set(names) - set(cases)
    return [
        pytest.param(value, id=name, marks=() if name in names else pytest.mark.slow) for name, value in cases.items()
    ]


def first_quick(values, number=1):
    """Parameters of which the first are quick and the others slow."""
    return [pytest.param(each, marks=pytest.mark.slow if index >= number else ()) for index, each in enumerate(values)]
