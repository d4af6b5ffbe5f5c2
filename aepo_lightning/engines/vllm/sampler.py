"""Drawing tokens inside vLLM with the sampler of this library, in this process or in a server's worker.

vLLM draws with one generator per request, which starts anew with each request and has no place in an absolute
position. `install` puts `sampling.sample_tokens` in its place for every request that carries `draw_arguments`: the same
seed then gives the same tokens as the embedded engine, however a sequence was split into requests and whatever else is
in the batch. Requests without them keep the token that vLLM draws.

For all of them the log-probs are those at the request's temperature before top-p and top-k, and the field of the rank
holds the exact entropy (`vllm.entropy`). Nothing here needs vLLM to be imported before a model runner exists.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.engines.sampling import counter_uniforms, sample_tokens
from aepo_lightning.engines.vllm.entropy import pack_entropies
from aepo_lightning.errors import EngineError

_MARKER = "aepo_draw"
"""The entry of a request's `extra_args` that makes it one of ours."""
_ROWS_AT_ONCE = 32
"""Bounds the temporaries of a draw: 40 MB per float64 table for a vocabulary of 152k."""


def draw_arguments(params: SamplingParams) -> dict[str, list[int | float]]:
    """Return what `extra_args` of a vLLM request must hold for its tokens to be drawn here."""
    return {_MARKER: [params.seed, params.temperature, params.top_p, params.top_k]}


def install(runner: Any) -> None:
    """Make one model runner of vLLM draw and report as this module describes; once is enough, twice does no harm.

    Args:
        runner: What a worker holds as `model_runner`, of either kind.

    Raises:
        EngineError: If the runner samples with a class that this module does not know.
    """
    remove(runner)
    sampler: Any = getattr(runner, "sampler", None)
    if _is_a(sampler, "vllm.v1.sample.sampler") and hasattr(runner, "seq_lens"):
        sampler.forward = _first_forward(runner, sampler.forward)
    elif _is_a(sampler, "vllm.v1.worker.gpu.sample.sampler"):
        sampler.drawn_here = {}
        sampler.__class__ = _second_class(type(sampler))
    else:
        known = "the sampler of one of vLLM's two model runners, without a watermark"
        raise EngineError(f"`model_runner.sampler` must be {known}, but got {type(sampler).__qualname__}.")


def remove(runner: Any) -> None:
    """Give a model runner vLLM's own sampler back; does nothing where none was replaced."""
    sampler = getattr(runner, "sampler", None)
    own = getattr(sampler, "__dict__", {})
    own.pop("forward", None)
    if sampler is not None and "drawn_here" in own:
        del sampler.drawn_here
        sampler.__class__ = type(sampler).__mro__[1]


def _is_a(sampler: Any, module: str) -> bool:
    # By name, exactly: a subclass may sample differently, and the module of the other runner may not import.
    return (type(sampler).__module__, type(sampler).__qualname__) == (module, "Sampler")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """How one request of a batch is drawn."""

    is_ours: bool
    seed: int
    temperature: float
    top_p: float
    top_k: int
    is_penalised: bool
    """Whether vLLM lowers the scores of tokens that were there before, in a copy from which the row is drawn."""


def _row(native: Any) -> _Row:
    marked = (native.extra_args or {}).get(_MARKER)
    if marked is None:
        return _Row(is_ours=False, seed=0, temperature=native.temperature, top_p=1.0, top_k=0, is_penalised=False)
    seed, temperature, top_p, top_k = marked
    return _Row(
        is_ours=True,
        seed=int(seed),
        temperature=float(temperature),
        top_p=float(top_p),
        top_k=int(top_k),
        is_penalised=native.repetition_penalty != 1,
    )


def _first_forward(runner: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method that takes the place of the first runner's `Sampler.forward`."""
    outputs = import_module("vllm.v1.outputs")

    def forward(logits: Tensor, sampling_metadata: Any, predict_bonus_token: bool = False, **kwargs: Any) -> Any:
        names = runner.input_batch.req_ids
        # Warm-up passes have no requests, and a bonus token follows drafts that stand at other positions.
        if len(names) != logits.shape[0] or predict_bonus_token:
            return original(logits, sampling_metadata, predict_bonus_token, **kwargs)
        rows = [_row(runner.requests[name].sampling_params) for name in names]
        native = None
        if not all(row.is_ours for row in rows):  # on a copy, because vLLM scales and masks its logits in place
            native = original(logits.clone(), sampling_metadata, **kwargs).sampled_token_ids[:, 0].long()
        drawn_from = None
        if any(row.is_penalised for row in rows):
            histories = sampling_metadata.output_token_ids
            drawn_from = runner.sampler.apply_penalties(logits.float().clone(), sampling_metadata, histories)
        num_top = sampling_metadata.max_num_logprobs
        # As many tokens as the model has read when this pass is over: the position of the next one.
        columns = _Columns(rows, runner.seq_lens[: len(rows)], native, drawn_from, logits.device)
        tokens, *scores = _draw(logits, columns, num_top or 0)
        logprobs_tensors = None if num_top is None else outputs.LogprobsTensors(*scores)
        return outputs.SamplerOutput(sampled_token_ids=tokens[:, None].int(), logprobs_tensors=logprobs_tensors)

    return forward


def _second_class(original: type[Any]) -> type[Any]:
    """Return the class that takes the place of the second runner's `Sampler`."""
    outputs = import_module("vllm.v1.outputs")

    def add_request(self: Any, req_idx: int, sampling_params: Any) -> None:
        original.add_request(self, req_idx, sampling_params)
        self.drawn_here[req_idx] = _row(sampling_params)

    def call(self: Any, logits: Tensor, input_batch: Any) -> Any:
        rows = [self.drawn_here.get(index) for index in input_batch.idx_mapping_np.tolist()]
        if None in rows or len(rows) != logits.shape[0]:
            return original.__call__(self, logits, input_batch)
        dims = self.get_logprobs_dims(input_batch.idx_mapping_np)
        output = original.__call__(self, logits.clone(), input_batch)
        positions = input_batch.positions[input_batch.logits_indices] + 1
        sampled = output.sampled_token_ids
        drawn_from = _second_penalised(self, logits, input_batch) if any(row.is_penalised for row in rows) else None
        columns = _Columns(rows, positions, sampled[:, 0].long(), drawn_from, logits.device)
        tokens, *scores = _draw(logits, columns, dims[0] if dims else 0)
        output.sampled_token_ids = tokens[:, None].to(sampled.dtype)
        if dims is not None:
            output.logprobs_tensors = outputs.LogprobsTensors(*scores)
        return output

    return type("Sampler", (original,), {"add_request": add_request, "__call__": call})


def _second_penalised(sampler: Any, logits: Float[Tensor, "batch vocab"], batch: Any) -> Float[Tensor, "batch vocab"]:
    """Return the scores after the penalties of the second runner, which sees them as its own sampler shows them."""
    context = SimpleNamespace(
        expanded_idx_mapping=batch.expanded_idx_mapping,
        idx_mapping_np=batch.idx_mapping_np,
        expanded_local_pos=batch.expanded_local_pos,
        input_ids=batch.input_ids[batch.logits_indices],
    )
    penalised: Tensor = sampler.penalties_state.apply(logits.float().clone(), context)
    return penalised


def _draw(
    logits: Float[Tensor, "batch vocab"], columns: "_Columns", num_top: int
) -> tuple[Int[Tensor, " batch"], Int[Tensor, "batch topk"], Float[Tensor, "batch topk"], Int[Tensor, " batch"]]:
    """Return tokens, and as vLLM lists them: the sampled and the top tokens, their log-probs, packed entropies."""
    parts = [
        _draw_chunk(logits[start : start + _ROWS_AT_ONCE], columns, start, num_top)
        for start in range(0, len(logits), _ROWS_AT_ONCE)
    ]
    tokens, listed, logprobs, codes = (torch.cat(part) for part in zip(*parts, strict=True))
    return tokens, listed, logprobs, codes


class _Columns:
    """The rows of a batch as tensors."""

    def __init__(
        self,
        rows: Sequence[_Row],
        positions: Int[Tensor, " batch"],
        native: Int[Tensor, " batch"] | None,
        drawn_from: Float[Tensor, "batch vocab"] | None,
        device: torch.device,
    ) -> None:
        seeds = torch.tensor([row.seed for row in rows], device=device)
        self.temperature = torch.tensor([row.temperature for row in rows], device=device)
        self.top_p = torch.tensor([row.top_p for row in rows], device=device)
        self.top_k = torch.tensor([row.top_k for row in rows], device=device)
        self.uniforms = counter_uniforms(seeds, positions.long())
        self.is_ours = torch.tensor([row.is_ours for row in rows], device=device)
        self.native, self.drawn_from = native, drawn_from


def _draw_chunk(
    logits: Float[Tensor, "batch vocab"], columns: _Columns, start: int, num_top: int
) -> tuple[Int[Tensor, " batch"], Int[Tensor, "batch topk"], Float[Tensor, "batch topk"], Int[Tensor, " batch"]]:
    own = slice(start, start + logits.shape[0])
    drawn = sample_tokens(
        logits,
        columns.temperature[own],
        columns.top_p[own],
        columns.top_k[own],
        columns.uniforms[own],
        drawn_from=None if columns.drawn_from is None else columns.drawn_from[own],
    )
    tokens = drawn.token_ids
    if columns.native is not None:
        tokens = torch.where(columns.is_ours[own], tokens, columns.native[own])
    top = drawn.all_logprobs.topk(num_top, dim=-1)
    listed = torch.cat((tokens[:, None], top.indices), dim=-1).int()
    logprobs = torch.cat((drawn.all_logprobs.gather(-1, tokens[:, None]), top.values), dim=-1)
    return tokens, listed, logprobs, pack_entropies(drawn.entropies)
