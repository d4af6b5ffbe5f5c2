"""A number of threads that is none is refused by name, in whatever command it stands."""

import pytest
import torch

from aepo_lightning.app.threads import set_threads
from aepo_lightning.errors import ConfigError


@pytest.mark.parametrize("number", [0, -1, True, "two", 1.5])
def test_what_is_no_number_of_threads_is_refused(number):
    with pytest.raises(ConfigError, match="`num_threads` must be null or at least 1, but got"):
        set_threads(number)


def test_none_leaves_the_number_as_it_is(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    set_threads(None)
    set_threads(3)
    assert chosen == [3]
