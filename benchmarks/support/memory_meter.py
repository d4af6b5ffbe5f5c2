"""Counts the bytes of every tensor that exists while real code runs, storage by storage, and what they are for.

A dispatch mode sees each operation and registers the storages of its results; a weak reference says when one is gone.
What kernels use inside themselves is not seen. Fake tensors (`torch._subclasses.FakeTensorMode`) count like real ones,
so that a model of any size can be measured on any machine.
"""

import sys
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WEIGHTS, GRADIENTS, OPTIMISER = "weights", "gradients", "optimiser"
GATHERED, BUFFERS, HEAD, ACTIVATIONS = "gathered weights", "gradient buffers", "log-prob head", "activations"
PARTS = (WEIGHTS, OPTIMISER, GRADIENTS, GATHERED, BUFFERS, ACTIVATIONS, HEAD)

_INDEXING = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
)


@dataclass(slots=True)
class _Entry:
    num_bytes: int
    part: str


class MemoryMeter(TorchDispatchMode):
    """Follows storages from their first sight to their end while it is entered."""

    def __init__(self, network: nn.Module) -> None:
        """Count the parameters of `network`; a tensor of a parameter's shape that backward makes is its gradient."""
        super().__init__()
        self.num_bytes = 0
        self.peak_bytes = 0
        self._entries: dict[int, _Entry] = {}
        self._serials: dict[int, int] = {}
        self._references: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._next = 0
        self._shapes = {tuple(parameter.shape) for parameter in network.parameters() if parameter.ndim > 1}
        self._snapshot: dict[int, tuple[int, str]] = {}
        self.track(network.parameters(), WEIGHTS)

    def track(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors that exist already, as `part`, or say that counted ones belong to it."""
        for tensor in tensors:
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            storage = local.untyped_storage()
            if id(storage) in self._serials:
                self._entries[self._serials[id(storage)]].part = part
            else:
                self._add(storage, part)

    def reset_peak(self) -> None:
        """Forget the peak so far."""
        self.peak_bytes, self._snapshot = self.num_bytes, self._present()

    def relabel_peak(self, tensors: Iterable[Tensor], part: str) -> None:
        """Say that what these tensors hold belonged to `part` at the peak."""
        for tensor in tensors:
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            serial = self._serials.get(id(local.untyped_storage()))
            if serial in self._snapshot:
                self._snapshot[serial] = (self._snapshot[serial][0], part)

    @property
    def peak_parts(self) -> dict[str, int]:
        """Bytes of each part at the moment at which most existed."""
        found = dict.fromkeys(PARTS, 0)
        for num_bytes, part in self._snapshot.values():
            found[part] += num_bytes
        return found

    def __enter__(self) -> "MemoryMeter":
        """Start counting."""
        self._original = torch.UntypedStorage.resize_
        original, meter = self._original, self

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            # FSDP2 frees and revives gathered weights this way, which no operation tells of.
            result = original(storage, size)
            meter._resized(storage)
            return result

        torch.UntypedStorage.resize_ = resize_
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Stop counting."""
        torch.UntypedStorage.resize_ = self._original
        super().__exit__(*exception)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and register what it returns."""
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # it comes again with the local tensors
        found = func(*_with_all_selected(func, args), **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                storage = tensor.untyped_storage()
                if id(storage) not in self._serials and not _is_only_a_shape(tensor):
                    self._add(storage, self._part_of(tensor))
        return found

    def _add(self, storage: torch.UntypedStorage, part: str) -> None:
        self._next += 1
        key, serial = id(storage), self._next
        self._serials[key] = serial
        self._entries[serial] = _Entry(storage.nbytes(), part)
        self._references[serial] = weakref.ref(storage, partial(self._remove, key, serial))
        self._change(storage.nbytes())

    def _remove(self, key: int, serial: int, _: object) -> None:
        self._serials.pop(key, None)
        self._references.pop(serial, None)
        self.num_bytes -= self._entries.pop(serial).num_bytes

    def _resized(self, storage: torch.UntypedStorage) -> None:
        serial = self._serials.get(id(storage))
        if serial is None:
            self._add(storage, GATHERED)
            return
        entry = self._entries[serial]
        change = storage.nbytes() - entry.num_bytes
        entry.num_bytes += change
        self._change(change)

    def _change(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        if self.num_bytes > self.peak_bytes:
            self.peak_bytes, self._snapshot = self.num_bytes, self._present()

    def _present(self) -> dict[int, tuple[int, str]]:
        return {serial: (entry.num_bytes, entry.part) for serial, entry in self._entries.items()}

    def _part_of(self, tensor: Tensor) -> str:
        """Tell the purpose of a new tensor from who made it."""
        part = _part_of_frames(sys._getframe(2))
        is_gradient = part in (HEAD, ACTIVATIONS) and tuple(tensor.shape) in self._shapes
        return BUFFERS if is_gradient else part


def _part_of_frames(frame: FrameType | None) -> str:
    while frame is not None:
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        if "/torch/distributed/fsdp/" in path:
            return BUFFERS if name in ("foreach_reduce", "post_backward") else _of_fsdp(frame.f_back)
        if path.endswith("ops/logprob.py"):
            return HEAD
        if "/torch/optim/" in path:
            return OPTIMISER
        frame = frame.f_back
    return ACTIVATIONS


def _of_fsdp(frame: FrameType | None) -> str:
    """Tell reductions from gathers by the functions further up."""
    while frame is not None and "/torch/distributed/fsdp/" in frame.f_code.co_filename:
        if frame.f_code.co_name in ("foreach_reduce", "post_backward"):
            return BUFFERS
        frame = frame.f_back
    return GATHERED


def _is_only_a_shape(tensor: Tensor) -> bool:
    """Tell tensors that some library makes to learn shapes: fake ones where nothing was asked to be fake."""
    return isinstance(tensor, FakeTensor) and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is None


def _with_all_selected(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Replace fake masks that index by as many positions: nobody knows what they select, so all is assumed."""
    if func not in _INDEXING:
        return args
    indices: list[Tensor | None] = []
    for index in args[1]:
        if isinstance(index, FakeTensor) and index.dtype == torch.bool:
            indices += [torch.empty(index.numel(), dtype=torch.long, device=index.device) for _ in range(index.ndim)]
        else:
            indices.append(index)
    return args[0], indices, *args[2:]
