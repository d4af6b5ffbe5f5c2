"""What ranks have to agree on: sums, maxima, names, values. Everything also works where there is a single process."""

import platform
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from aepo_lightning.errors import AepoError, DataError

Result = TypeVar("Result")
Value = TypeVar("Value")


def world_size() -> int:
    """Return the number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce(values: Sequence[float | int], op: str = "sum") -> list[float]:
    """Reduce numbers over all ranks in float64.

    Args:
        values: One or more numbers, as many on every rank.
        op: `sum` or `max`.

    Raises:
        ValueError: If `op` is unknown.
    """
    if op not in ("sum", "max"):
        raise ValueError(f"`op` must be 'sum' or 'max', but got {op!r}.")
    if world_size() == 1 or not values:
        return [float(value) for value in values]
    # NCCL moves CUDA tensors only.
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX)
    return [float(value) for value in tensor.tolist()]


def all_names(names: Iterable[str]) -> list[str]:
    """Return the names that at least one rank has, sorted, the same list on every rank."""
    return sorted({name for each in all_gather(sorted(set(names))) for name in each})


def all_gather(own: Value) -> list[Value]:
    """Return the values of all ranks, which can be pickled, in the order of ranks. Collective."""
    if world_size() == 1:
        return [own]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, own)
    return found


def from_rank_zero(value: Value) -> Value:
    """Return the value of rank 0, which can be pickled, on every rank. Collective."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_rank_zero(action: Callable[[], object]) -> None:
    """Run an action on rank 0 only, and fail on every rank if it fails there. Collective.

    Raises:
        AepoError: What the action raised, on every rank.
    """
    problem: AepoError | None = None
    if world_size() == 1 or dist.get_rank() == 0:
        try:
            action()
        except AepoError as error:
            problem = error
    if (found := from_rank_zero(problem)) is not None:
        raise found


def together(action: Callable[[], Result]) -> Result:
    """Run what may fail on some ranks only, such as reading files, and fail on all of them or on none. Collective.

    Raises:
        DataError: If the action raised a `DataError` on any rank.
    """
    result, problem = None, ""
    try:
        result = action()
    except DataError as error:
        problem = str(error)
    problems = [each for each in all_names([problem]) if each]
    if problems:
        raise DataError(" | ".join(problems))
    return result  # type: ignore[return-value]  # it is unset only where there was a problem


def first_on_each_node(action: Callable[[], Result]) -> Result:
    """Run an action on the first rank of every machine, then on the others. Collective.

    What the first rank downloads, the others find on the disk.

    Raises:
        DataError: If the action raised a `DataError` on any rank.
    """
    is_first = _is_first_on_node()
    if is_first:
        result = together(action)
        together(lambda: None)
        return result
    together(lambda: None)
    return together(action)


def _is_first_on_node() -> bool:
    nodes = all_gather(platform.node())
    return world_size() == 1 or nodes.index(platform.node()) == dist.get_rank()
