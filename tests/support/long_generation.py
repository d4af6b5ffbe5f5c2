"""Generation that takes minutes, and tells when each of its steps began."""

import threading
import time
from pathlib import Path

from lightning import Callback
from typing_extensions import override

from aepo_lightning.engines import TransformersEngine

STEP_S = 0.05


class LongEngine(TransformersEngine):
    """No token ends what it generates, and each step takes a while; `mark` gets a line for each of them.

    With `beside` that holds for rollouts beside an update only, and the others are as usual.
    """

    def __init__(self, policy, mark, beside, **settings):
        super().__init__(policy, **settings)
        self._mark, self._beside = Path(mark), beside
        self._usual = self._eos_token_ids

    def _step(self):
        is_long = not self._beside or threading.current_thread().name.startswith("aepo-overlap")
        self._eos_token_ids = frozenset() if is_long else self._usual
        if is_long:
            with self._mark.open("a") as file:
                file.write(f"{time.monotonic()}\n")
            time.sleep(STEP_S)
        super()._step()


class EpochIsOver(Callback):
    """Makes a file at the end of an epoch, before checkpoints are written."""

    def __init__(self, mark):
        self._mark = Path(mark)

    @override
    def on_train_epoch_end(self, trainer, pl_module):
        self._mark.touch()
