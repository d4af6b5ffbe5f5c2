"""What ranks have to agree on: sums, maxima and names. Everything also works where there is a single process."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist


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
    own = sorted(set(names))
    if world_size() == 1:
        return own
    found: list[list[str]] = [[] for _ in range(world_size())]
    dist.all_gather_object(found, own)
    return sorted({name for each in found for name in each})
