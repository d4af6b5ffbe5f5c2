"""Runs a function as several gloo ranks of one job, in processes that the test starts itself."""

import multiprocessing
import os
import pickle
import socket
import tempfile
import traceback
import warnings
from pathlib import Path

import lightning as L
import torch
import torch.distributed as dist
from typing_extensions import override

TIMEOUT_S = 60


def run_ranks(job, *args, world=2):
    """Call `job(rank, *args)` in `world` processes and return what each returned.

    The processes are forked, so that nothing has to be imported again. Lightning launches nothing where it finds the
    variables of a running job; without them it would start the whole pytest command once more.
    """
    context = multiprocessing.get_context("fork")
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"rank{rank}.pickle" for rank in range(world)]
        processes = [
            context.Process(target=_run, args=(job, args, rank, world, port, paths[rank]), daemon=True)
            for rank in range(world)
        ]
        with warnings.catch_warnings():
            # Python 3.12 and later; the children use one thread and no lock of another.
            warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
            for process in processes:
                process.start()
        for process in processes:
            process.join(TIMEOUT_S)
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
        return [_result(path) for path in paths]


def _run(job, args, rank, world, port, path):
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port, "NODE_RANK": 0}
    os.environ.update({name: str(value) for name, value in variables.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    if dist.is_initialized():
        dist.GroupMember.WORLD = None  # of an engine in the test process; the fork is no member of it
    try:
        found = (True, job(rank, *args))
    except BaseException:  # noqa: BLE001 -- whatever ended the rank is the test's result
        found = (False, traceback.format_exc())
    path.write_bytes(pickle.dumps(found))


def _result(path):
    assert path.is_file(), f"{path.stem} did not finish within {TIMEOUT_S} s"
    is_good, value = pickle.loads(path.read_bytes())
    assert is_good, f"{path.stem}: {value}"
    return value


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class RankDraws(L.Callback):
    """Numbers that differ between ranks from the first iteration on."""

    def __init__(self):
        self.numbers = []

    @override
    def on_train_start(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            torch.manual_seed(trainer.global_rank)

    @override
    def on_train_epoch_end(self, trainer, pl_module):
        self.numbers.append(torch.rand(()).item())
