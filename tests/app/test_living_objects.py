"""Objects that the collector is spared, and those that it still collects."""

import gc
import weakref

from aepo_lightning.app.living_objects import spare_living_objects


class Node:
    def __init__(self):
        self.me = self


def test_garbage_goes_now_and_later_but_what_is_alive_is_not_looked_at():
    old = weakref.ref(Node())
    alive = [Node()]
    try:
        spare_living_objects()
        assert old() is None
        assert not any(found is alive for found in gc.get_objects())
        new = weakref.ref(Node())
        gc.collect()
        assert new() is None
    finally:
        gc.unfreeze()
