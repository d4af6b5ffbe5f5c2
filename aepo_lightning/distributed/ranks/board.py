"""What the ranks of a job tell each other, in the store that their process group has anyway."""

import json
import os
import socket
import traceback
from dataclasses import asdict, dataclass
from datetime import timedelta
from time import monotonic, sleep

from torch.distributed.distributed_c10d import PrefixStore, Store

from aepo_lightning.distributed.ranks.processes import machine_id
from aepo_lightning.errors import AepoError, SignalExit

_FAILURE = "failure"
_QUESTION = "where"
_PATIENCE = timedelta(seconds=15)
"""How long one request to the store may take."""
_ASK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a job ends."""

    rank: int
    reason: str
    """One line, the error itself at its end."""
    place: str = ""
    """Host and process of the rank."""
    details: str = ""
    """A traceback, or where the ranks stand."""
    signal: int | None = None
    """Number of the signal that told the rank to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """What a rank last said about itself."""

    beat: int = 0
    """Grows for as long as the process lives."""
    ticks: int = 0
    """Grows with the work that is done."""
    is_in: bool = True
    """Whether others may have to wait for it. False once it is through."""


class Board:
    """A store with a page for each rank and one for the failure that ends the job."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        """Take a store of its own: requests of one client wait for each other."""
        self._store = PrefixStore("aepo_ranks", store)
        self._store.set_timeout(_PATIENCE)
        self.rank = rank
        self.world = world

    @property
    def others(self) -> list[int]:
        """The other ranks."""
        return [rank for rank in range(self.world) if rank != self.rank]

    def introduce(self, sign: Sign) -> None:
        """Say where this process runs."""
        self._store.set(f"process/{self.rank}", json.dumps([machine_id(), os.getpid()]))
        self.show(sign)

    def has_met_all(self) -> bool:
        """Whether every rank has introduced itself."""
        return bool(self._store.check([f"sign/{rank}" for rank in range(self.world)]))

    def neighbours(self, ranks: list[int]) -> dict[int, int]:
        """Return the processes of those of some ranks, all of whom have introduced themselves, on this machine."""
        entries = self._store.multi_get([f"process/{rank}" for rank in ranks])
        places = [(rank, *json.loads(entry)) for rank, entry in zip(ranks, entries, strict=True)]
        return {rank: pid for rank, machine, pid in places if machine == machine_id()}

    def show(self, sign: Sign) -> None:
        """Tell the others about this rank."""
        self._store.set(f"sign/{self.rank}", json.dumps(asdict(sign)))

    def signs(self, ranks: list[int]) -> dict[int, Sign]:
        """Return what ranks last said."""
        entries = self._store.multi_get([f"sign/{rank}" for rank in ranks])
        return {rank: Sign(**json.loads(entry)) for rank, entry in zip(ranks, entries, strict=True)}

    def post(self, failure: Failure) -> Failure:
        """Post why the job ends; return the failure that stands, which is the first."""
        return text_to_failure(self._store.compare_set(_FAILURE, "", failure_to_text(failure)))

    def failure(self) -> Failure | None:
        """Return what was posted, if anything."""
        return text_to_failure(self._store.get(_FAILURE)) if self._store.check([_FAILURE]) else None

    def acknowledge(self) -> None:
        """Say that this rank knows of the failure and needs the board no longer."""
        self._store.set(f"read/{self.rank}", "")

    def wait_until_read(self, seconds: float, without: int | None = None) -> bool:
        """Wait until the others know of the failure, and return whether they do."""
        keys = [f"read/{rank}" for rank in self.others if rank != without]
        return not keys or self._wait(keys, seconds)

    def is_asked_for_place(self) -> bool:
        """Whether somebody wants to know where every rank stands."""
        return bool(self._store.check([_QUESTION]))

    def tell_place(self, place: str) -> None:
        """Say where this rank stands."""
        self._store.set(f"{_QUESTION}/{self.rank}", place)

    def ask_places(self, own: str, seconds: float) -> dict[int, str]:
        """Return where each rank stands that answers in time."""
        self.tell_place(own)
        self._store.set(_QUESTION, "")
        self._wait([f"{_QUESTION}/{rank}" for rank in range(self.world)], seconds)
        keys = {rank: f"{_QUESTION}/{rank}" for rank in range(self.world)}
        return {rank: self._store.get(key).decode() for rank, key in keys.items() if self._store.check([key])}

    def _wait(self, keys: list[str], seconds: float) -> bool:
        deadline = monotonic() + seconds
        while not self._store.check(keys):
            if monotonic() > deadline:
                return False
            sleep(_ASK_EVERY_S)
        return True


def failure_of(error: BaseException, rank: int) -> Failure:
    """Return why a rank of this process cannot go on: errors of this library explain themselves, others say where."""
    is_plain = isinstance(error, (AepoError, KeyboardInterrupt, SystemExit))
    details = "" if is_plain else "".join(traceback.format_exception(error)).rstrip()
    number = error.number if isinstance(error, SignalExit) else None
    reason = f"it failed with {type(error).__name__}: {error}" if number is None else f"it was {error}"
    return Failure(rank=rank, reason=reason, place=own_place(), details=details, signal=number)


def failure_to_text(failure: Failure) -> str:
    """Return a failure as the store keeps it."""
    return json.dumps(asdict(failure))


def text_to_failure(text: str | bytes) -> Failure:
    """Return the failure that `failure_to_text` wrote."""
    return Failure(**json.loads(text))


def own_place() -> str:
    """Return host and process for people to read."""
    return f"{socket.gethostname()}, process {os.getpid()}"
