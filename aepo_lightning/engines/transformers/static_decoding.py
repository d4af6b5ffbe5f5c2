"""A decoding step of fixed shape, which reads and writes the same memory every time, so that a CUDA graph can hold it.

Its rows are the first rows of the cache and its columns the first positions, both rounded up to a few sizes. Rows
without a request of the step are computed for nothing: they write to a position that no sequence has.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from aepo_lightning.engines.request import Request
from aepo_lightning.engines.sampling import counter_uniforms, sample_tokens
from aepo_lightning.engines.transformers.head import Drawn, StepKind, head_logits, pack, unpack
from aepo_lightning.engines.transformers.slot_cache import PrefixIndex, SlotCache
from aepo_lightning.errors import EngineError, boundary
from aepo_lightning.ops.logit_map import LogitMap
from aepo_lightning.policy.rounding import median_distance, most_rounding

Step = Callable[[], Tensor]
Capture = Callable[[Step], Step]
"""Turns a step into one that does the same; at once on a CPU, by a graph on CUDA."""

_LEAST_ROWS = 8
_LEAST_SPAN = 128
_ALIGNMENT = 64
"""Of positions, so that attention kernels read keys and mask in whole blocks."""


def static_length(max_model_len: int) -> int:
    """Return the length of a static cache: the longest sequence, a position for padding, and whole blocks."""
    return -(-(max_model_len + 1) // _ALIGNMENT) * _ALIGNMENT


def rounded_up(number: int, least: int, most: int) -> int:
    """Return the smallest size that holds `number`: powers of two and, from 64 on, 1.5 times them, up to `most`."""
    size = least
    while size < number:
        between = size * 3 // 2
        size = between if size >= 64 and number <= between else 2 * size
    return min(size, most)


@dataclass(frozen=True, slots=True)
class StepShape:
    """The size of a step, and what it samples."""

    num_rows: int
    span: int
    kind: StepKind


class CaptureError(EngineError):
    """Decoding steps of fixed shape do not serve a model."""


class StaticDecoder:
    """Decoding steps over the first rows of a static cache."""

    def __init__(
        self,
        model: PreTrainedModel,
        logit_map: LogitMap,
        cache: SlotCache,
        prefixes: PrefixIndex,
        max_num_seqs: int,
        capture: Capture,
    ) -> None:
        """Reserve the inputs.

        Args:
            model: On its device; its weights are only ever changed in place.
            logit_map: What it does to the outputs of its head.
            cache: A static one, with at least `max_num_seqs` slots.
            prefixes: What its slots hold.
            max_num_seqs: Most requests of a step.
            capture: Makes a step that can be repeated.
        """
        self._model, self._logit_map = model, logit_map
        self._cache, self._prefixes = cache, prefixes
        self._max_num_seqs = max_num_seqs
        self._capture = capture
        self._steps: dict[StepShape, Step] = {}
        device = model.device
        self._dtype = next(model.parameters()).dtype
        self._row_numbers = torch.arange(max_num_seqs, device=device)
        self._columns = torch.arange(cache.capacity, device=device)
        # One row for each, with the columns of `_Inputs`.
        self._integers = torch.zeros(max_num_seqs, 6, dtype=torch.long, device=device)
        self._floats = torch.ones(max_num_seqs, 2, device=device)

    @property
    def shapes(self) -> list[StepShape]:
        """Shapes of the steps that were captured."""
        return list(self._steps)

    @torch.inference_mode()
    def check(self) -> None:
        """Compare last hidden states of a step with those of a plain forward pass, and leave nothing behind.

        Raises:
            CaptureError: If they differ, or the model fails.
        """
        with boundary(_refuse):
            found, expected = self._trial(min(2, self._max_num_seqs), 4)
        difference, most = median_distance(found, expected), most_rounding(expected)
        if not difference <= most:
            raise CaptureError(
                f"Last hidden states of a decoding step must be those of a plain pass, but differ by {difference:.2g} "
                f"of their norm, where rounding may make {most:g}."
            )

    def _trial(self, count: int, length: int) -> tuple[Tensor, Tensor]:
        """Return last hidden states after a few tokens, by a step and by a plain pass."""
        device, vocabulary = self._columns.device, len(self._model.lm_head.weight)
        ids = torch.arange(count * (length + 1), device=device).view(count, -1) % vocabulary
        positions = torch.arange(length, device=device).expand(count, -1)
        self._cache.prepare(self._row_numbers[:count], positions, length)
        self._model.model(
            input_ids=ids[:, :length],
            attention_mask=(positions[:1] <= positions[..., None])[:, None],
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        last = ids[:, length].tolist()
        self._upload({row: _Inputs([last[row], length, length, 0, 0, -1], [1.0, 1.0]) for row in range(count)})
        span = rounded_up(length + 1, _LEAST_SPAN, self._cache.capacity)
        found = self._states(StepShape(rounded_up(count, _LEAST_ROWS, self._max_num_seqs), span, StepKind()))
        plain: Tensor = self._model.model(input_ids=ids, use_cache=False).last_hidden_state
        return found[:count], plain[:, length]

    def launch(self, requests: list[Request], before: "LaunchedStep | None" = None) -> "LaunchedStep":
        """Start the step that samples the next token of each request.

        Args:
            requests: All of whose tokens but the last are in their slots.
            before: A step that has not been read. Its tokens are the last ones of its requests, and stay on the device.

        Raises:
            CaptureError: If the step is the first of its shape and cannot be captured.
        """
        num_rows = rounded_up(len(requests), _LEAST_ROWS, self._max_num_seqs)
        longest = max(request.num_computed for request in requests) + 1
        span = rounded_up(longest, _LEAST_SPAN, self._cache.capacity)
        slots = [request.slot for request in requests]
        self._cache.bring_forward(slots, num_rows, max(longest, self._prefixes.longest))
        rows = self._cache.rows.of(slots)
        sources = {} if before is None else before.rows
        self._upload({row: _inputs(each, sources.get(id(each))) for row, each in zip(rows, requests, strict=True)})
        if before is not None:
            self._take_tokens(before)
        packed = self._step(StepShape(num_rows, span, StepKind.of(requests)))()
        return LaunchedStep(requests, rows, packed)

    def _take_tokens(self, before: "LaunchedStep") -> None:
        """Feed what a step has sampled, without a word to the host."""
        tokens, sources = self._integers[:, 0], self._integers[:, 5]
        sampled = before.packed[0].long()[sources.clamp(min=0)]
        tokens.copy_(torch.where(sources >= 0, sampled, tokens))

    def _upload(self, inputs: Mapping[int, "_Inputs"]) -> None:
        idle = _Inputs([0, 0, self._cache.capacity - 1, 0, 0, -1], [1.0, 1.0])
        rows = [inputs.get(row, idle) for row in range(self._max_num_seqs)]
        for device, values in ((self._integers, [r.integers for r in rows]), (self._floats, [r.floats for r in rows])):
            host = torch.tensor(values, dtype=device.dtype, pin_memory=device.is_cuda)
            device.copy_(host, non_blocking=True)

    def _step(self, shape: StepShape) -> Step:
        if shape not in self._steps:
            # With the inputs in place: to capture a step is to run it, and it writes keys and values.
            with boundary(_refuse):
                self._steps[shape] = self._capture(lambda: self._run(shape))
        return self._steps[shape]

    def _run(self, shape: StepShape) -> Float[Tensor, "numbers batch"]:
        """Compute one step from what was uploaded, without a word to the host."""
        _, positions, _, seeds, top_k, _ = self._integers[: shape.num_rows].unbind(1)
        temperature, top_p = self._floats[: shape.num_rows].unbind(1)
        sampled = sample_tokens(
            head_logits(self._model, self._logit_map, self._states(shape)),
            temperature,
            top_p,
            top_k,
            counter_uniforms(seeds, positions + 1),
            restricts=shape.kind.restricts,
            has_greedy=shape.kind.has_greedy,
        )
        return pack(sampled, shape.kind.num_top)

    def _states(self, shape: StepShape) -> Float[Tensor, "batch hidden"]:
        ids, positions, writes, *_ = self._integers[: shape.num_rows].unbind(1)
        self._cache.prepare_first(self._row_numbers[: shape.num_rows], writes[:, None], shape.span)
        states: Tensor = self._model.model(
            input_ids=ids[:, None],
            attention_mask=self._mask(positions, shape.span),
            position_ids=positions[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return states[:, -1]

    def _mask(self, positions: Int[Tensor, " batch"], span: int) -> Float[Tensor, "batch 1 1 span"]:
        """Return what is added to scores: once for all layers, where each would turn a boolean mask into this."""
        is_hidden = self._columns[:span] > positions[:, None]
        mask = torch.zeros(is_hidden.shape, dtype=self._dtype, device=positions.device)
        return mask.masked_fill_(is_hidden, float("-inf"))[:, None, None]


class _Inputs(NamedTuple):
    """What a step computes one row from."""

    integers: list[int]
    """Token, its position, where its keys and values go, seed, top-k, and the row of the step before that sampled the
    token; -1 if the host knows it."""
    floats: list[float]
    """Temperature, top-p."""


def _inputs(request: Request, source: int | None) -> _Inputs:
    position, params = request.num_computed, request.params
    token, source = (request.tokens[position], -1) if source is None else (0, source)
    integers = [token, position, position, params.seed, params.top_k, source]
    return _Inputs(integers, [float(params.temperature), float(params.top_p)])


def _refuse(error: Exception) -> NoReturn:
    raise CaptureError(f"A decoding step could not be captured: {error!r}") from error


class LaunchedStep:
    """A step that the device works on."""

    def __init__(self, requests: list[Request], rows: Sequence[int], packed: Float[Tensor, "numbers batch"]) -> None:
        """Start the transfer to the host: the next step of this shape writes to the same memory.

        Args:
            requests: Whose tokens it samples.
            rows: Where, one for each request.
            packed: What it samples, on the device.
        """
        self.requests, self.packed = requests, packed
        self.rows = {id(request): row for request, row in zip(requests, rows, strict=True)}
        self._host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=packed.is_cuda)
        self._host.copy_(packed, non_blocking=True)
        self._event = torch.cuda.Event() if packed.is_cuda else None  # type: ignore[no-untyped-call]
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(packed.device))

    def read(self) -> Drawn:
        """Wait for the step and return what was sampled, in the order of its requests."""
        if self._event is not None:
            self._event.synchronize()
        return unpack(self._host, list(self.rows.values()))
