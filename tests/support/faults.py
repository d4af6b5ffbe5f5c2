"""A callback and a reward that make one rank of a job fail in the way that a test asks for."""

import os
import signal
import time

import lightning as L
from typing_extensions import override

from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.errors import TrainingError


def fail(how, mark):
    """Fail for good. What happens first is that the file `mark` says when."""
    with open(mark, "w") as file:
        file.write(str(time.time()))
    if how == "bug":
        raise RuntimeError("a bug of one rank only")
    if how == "refusal":
        raise TrainingError("a refusal of one rank only")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10_000)


class FaultyStep(L.Callback):
    """Fails at the first optimiser step of a rank."""

    def __init__(self, rank, how, mark):
        super().__init__()
        self.rank, self.how, self.mark = rank, how, mark

    @override
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == self.rank:
            fail(self.how, self.mark)


class FaultyReward:
    """Fails at the first trajectory of a rank. Takes the place of another reward, whose settings mean nothing here."""

    def __init__(self, rank, how, mark, **_):
        self.rank, self.how, self.mark = rank, how, mark

    async def __call__(self, _):
        rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK", "0"))
        if rank == self.rank:
            fail(self.how, self.mark)
        return RewardOutput(reward=0.0, is_correct=False, is_well_formed=False)
