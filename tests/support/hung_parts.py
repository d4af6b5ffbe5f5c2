"""A reward that does not answer, in several ways, and makes the file `mark` before; a tool that is down."""

import asyncio
import math
import threading
import time
from pathlib import Path

from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.errors import ToolUnavailableError

WAYS = ("async", "sleep", "thread", "lock", "swallow")


_state = {}


class HungReward:
    """Answers `after` times, then hangs, unless a run before it did. Settings of other rewards mean nothing here."""

    def __init__(self, how, mark, after=0, **_):
        # What a rollout is named by has the attributes, so what changes stands elsewhere.
        self.how, self.mark = how, str(mark)
        _state.update(left=after, has_hung=Path(mark).exists())

    def __repr__(self):
        return f"HungReward({self.how})"

    async def __call__(self, sample):
        _state["left"] -= 1
        if not _state["has_hung"] and _state["left"] < 0:
            Path(self.mark).touch()
            await getattr(self, "_" + self.how)()
        num_words = len(sample.response_text.split())
        return RewardOutput(reward=math.sin(num_words), is_correct=num_words % 2 == 0, is_well_formed=num_words > 5)

    async def _async(self):
        await asyncio.Event().wait()

    async def _sleep(self):
        time.sleep(10_000)

    async def _thread(self):
        await asyncio.to_thread(time.sleep, 10_000)

    async def _lock(self):
        threading.Event().wait()

    async def _swallow(self):
        while True:
            try:
                await asyncio.sleep(10_000)
            except BaseException:  # noqa: BLE001
                continue


async def search_that_is_down(query: str) -> str:
    """A tool whose provider does not answer."""
    raise ToolUnavailableError(f"No answer to {query!r}.")


class EpochMark(Checkpoint):
    """Makes the file `mark` at the end of an epoch, after the callbacks that were configured before."""

    def __init__(self, mark, epoch):
        self.mark, self.epoch = mark, epoch

    @override
    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            Path(self.mark).touch()
