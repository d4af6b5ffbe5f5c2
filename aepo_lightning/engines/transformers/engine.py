"""The embedded engine: continuous batching over any Hugging Face causal language model, on any machine.

One forward pass serves every running request: all that have a single token to feed in one batch, and all that have a
prompt or a tool result to feed in another. Keys and values stay in slots, so a chain's next turn and its branches
recompute nothing that they share. The library's own continuous batching was considered: it returns neither entropies
nor per-request seeds.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from aepo_lightning.contracts.engine import LowRankUpdate
from aepo_lightning.contracts.generation import FinishReason, Generation, SamplingParams
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.engines.adapters import AdapterBase
from aepo_lightning.engines.request import Request
from aepo_lightning.engines.sampling import counter_uniforms, sample_tokens
from aepo_lightning.engines.stopping import TokenPieces
from aepo_lightning.engines.transformers.architecture import check_architecture, check_cache
from aepo_lightning.engines.transformers.cuda_graphs import choose_capture
from aepo_lightning.engines.transformers.head import Drawn, StepKind, head_logits, pack, unpack
from aepo_lightning.engines.transformers.own_model import build_own_model, choose_cache_gib, choose_device, choose_dtype
from aepo_lightning.engines.transformers.penalised import drawing_scores, is_penalised
from aepo_lightning.engines.transformers.slot_cache import PrefixIndex, SlotCache, slot_bytes, slots_within
from aepo_lightning.engines.transformers.static_decoding import CaptureError, LaunchedStep, StaticDecoder, static_length
from aepo_lightning.engines.transformers.static_start import give_up_graphs, start_decoder
from aepo_lightning.engines.transformers.step_plan import StepPlan, unfinished
from aepo_lightning.errors import ConfigError, EngineError, boundary
from aepo_lightning.policy.checked_weights import copy_weights
from aepo_lightning.policy.end_tokens import eos_token_ids

logger = logging.getLogger(__name__)

_MOST_STEPS_UNFED = 16
"""Captured steps between two passes over the prompts of new requests, unless many wait."""
_FED_AT_ONCE = 8
"""One new request for so many that run is reason enough not to wait."""


@dataclass(slots=True)
class EngineCounters:
    """What the engine has done since it was created."""

    num_forward_passes: int = 0
    num_generated_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0


class TransformersEngine:
    """Batched generation with a slot cache; satisfies `Engine` and `AdapterEngine` of `contracts.engine`."""

    def __init__(  # noqa: PLR0913 -- every argument is one leaf of the configuration
        self,
        policy: PolicySource,
        max_num_seqs: int = 256,
        num_slots: int | None = None,
        max_model_len: int = 512,
        max_prefill_tokens: int = 8192,
        block_size: int = 8,
        device: str = "cpu",
        *,
        dtype: str = "auto",
        max_cache_gib: float | Literal["auto"] = "auto",
        cuda_graphs: str | bool = "auto",
    ) -> None:
        """Build the engine's own copy of the model.

        Args:
            policy: Architecture, tokenizer and first weights.
            max_num_seqs: Requests that run at once; more wait.
            num_slots: Sequences whose keys and values are kept, running ones included. Default: twice `max_num_seqs`.
            max_model_len: Longest sequence in tokens.
            max_prefill_tokens: Most tokens (padding included) of one forward pass over prompts.
            block_size: Granularity in tokens at which shared prefixes are found.
            device: Where the engine computes. `cuda` is the GPU of this rank, `auto` that GPU where there is one.
            dtype: Precision of weights, keys and values. `auto` is bfloat16 on CUDA for weights that are read from
                files, else that of the policy. Published weights are converted.
            max_cache_gib: Most memory for keys and values; `auto` is 16 on CUDA and 2 elsewhere. There are fewer slots
                where more would not fit.
            cuda_graphs: Whether decoding steps are captured as CUDA graphs. `auto` does so on CUDA where the
                architecture allows it and says where it does not; true refuses such an architecture.

        Raises:
            ConfigError: If a size is not positive, there are fewer slots than sequences, no sequence fits into the
                cache, or a setting has no meaning.
            EngineError: If the architecture is one that this engine would compute wrongly.
        """
        num_slots = 2 * max_num_seqs if num_slots is None else num_slots
        if max_num_seqs < 1 or max_model_len < 2 or num_slots < max_num_seqs:
            raise ConfigError(
                "`max_num_seqs` must be at least 1, `max_model_len` at least 2 and `num_slots` at least "
                f"`max_num_seqs`, but got {max_num_seqs}, {max_model_len} and {num_slots}."
            )
        self._device = choose_device(device)
        capture = choose_capture(cuda_graphs, self._device)
        self._model = build_own_model(policy, self._device, choose_dtype(dtype, self._device, policy))
        self._logit_map = check_architecture(self._model, max_model_len)
        check_cache(self._model)
        self._eos_token_ids = eos_token_ids(policy)
        self._pieces = TokenPieces(policy.tokenizer)
        weights_dtype = next(self._model.parameters()).dtype
        config = policy.config.get_text_config()
        # One column beyond the longest sequence takes the writes of padding.
        length = max_model_len + 1 if capture is None else static_length(max_model_len)
        slot = slot_bytes(config, length, weights_dtype)
        num_slots = slots_within(choose_cache_gib(max_cache_gib, self._device.type == "cuda"), slot, length, num_slots)
        self._max_num_seqs = min(max_num_seqs, num_slots)
        self._cache = SlotCache(config, num_slots, length, self._device, weights_dtype, is_static=capture is not None)
        self._prefixes = PrefixIndex(num_slots, block_size)
        self._decoder: StaticDecoder | None = None
        if capture is not None:
            decoder = StaticDecoder(
                self._model, self._logit_map, self._cache, self._prefixes, self._max_num_seqs, capture
            )
            self._decoder = start_decoder(decoder, self._model, insists=cuda_graphs is True)
        self._insists_on_graphs = cuda_graphs is True
        self._max_model_len = max_model_len
        self._max_prefill_tokens = max_prefill_tokens
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._plan: StepPlan | None = None
        self._in_flight: LaunchedStep | None = None
        self._num_steps_unfed = 0
        self._loop_task: asyncio.Task[None] | None = None
        self._base = AdapterBase()
        self.counters = EngineCounters()
        self.weights_version = 0

    @property
    def is_repeatable(self) -> bool:
        """Whether the same work gives the same bits: on the CPU. GPUs do not sum in the same order twice."""
        return self._device.type == "cpu"

    @property
    def dtype(self) -> str:
        """Precision of its weights."""
        return str(next(self._model.parameters()).dtype).removeprefix("torch.")

    @property
    def max_model_len(self) -> int:
        """Longest sequence (prompt and response together) in tokens."""
        return self._max_model_len

    async def generate(
        self, prompt_ids: list[int], params: SamplingParams, on_probe: Callable[[Generation], None] | None = None
    ) -> Generation:
        """Continue `prompt_ids`; see `contracts.engine.Engine.generate`.

        Raises:
            EngineError: If the prompt is empty or leaves no room in the context, or if the forward pass failed.
        """
        if not 0 < len(prompt_ids) < self._max_model_len:
            raise EngineError(
                f"A prompt must have between 1 and {self._max_model_len - 1} tokens, but got {len(prompt_ids)}. "
                "Shorten the prompt or raise the engine's `max_model_len`."
            )
        request = Request.start(prompt_ids, params, on_probe)
        self._waiting.append(request)
        # A loop that was stopped half-way leaves a task behind that will never run again.
        task = self._loop_task
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            self._loop_task = asyncio.create_task(self._serve())
        try:
            return await request.future
        except asyncio.CancelledError:
            self._drop(request)
            raise

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy weights by their Hugging Face names and forget every cached prefix.

        Raises:
            EngineError: If requests are running, a name is unknown, a shape differs, or a weight is missing. The
                weights before the error are then in place; publish again.
        """
        self._prepare_to_load()
        self._base.clear()
        copy_weights(self._model, weights, EngineError)
        self.weights_version = version

    @property
    def base(self) -> str:
        """Name of the weights that an adapter can be added to; empty if there are none."""
        return self._base.name

    def load_base(self, weights: Iterable[tuple[str, Tensor]], adapted: Collection[str], base: str) -> None:
        """Load weights as `load_weights` does, and keep a copy of those that adapters will change.

        Raises:
            EngineError: As `load_weights`.
        """
        self._prepare_to_load()
        copy_weights(self._model, self._base.keeping(weights, adapted, base), EngineError)

    def load_adapter(self, updates: Iterable[LowRankUpdate], version: int) -> None:
        """Add an adapter to the base, in place of the last one, and forget every cached prefix.

        Raises:
            EngineError: If requests are running, there is no base, or the updates are not those that it announced.
        """
        self._prepare_to_load()
        copy_weights(self._model, self._base.merged(updates), EngineError, is_partial=True)
        self.weights_version = version

    def _prepare_to_load(self) -> None:
        if self._running or self._waiting:
            raise EngineError("Weights must not change while requests run. Await every `generate` call first.")
        # Forgotten before the first copy: an error half-way must not leave keys and values of other weights behind.
        self._prefixes.clear()

    def sleep(self) -> None:
        """Keep everything: the engine's copy of the model stays in memory, ready for the next weights."""

    def close(self) -> None:
        """Fail whatever still waits and forget the cache."""
        self._fail(EngineError("The engine was closed."))
        self._prefixes.clear()

    async def _serve(self) -> None:
        while self._running or self._waiting:
            # Chains that were woken by the last pass get a turn each to ask for more, so that they batch together.
            for _ in range(4):
                await asyncio.sleep(0)
            with boundary(self._on_step_error):
                self._step()

    def _on_step_error(self, cause: Exception) -> None:
        error = EngineError(f"A generation step failed: {cause!r}")
        error.__cause__ = cause
        self._fail(error)

    def _fail(self, error: EngineError) -> None:
        for request in (*self._running, *self._waiting):
            if request.slot >= 0:
                self._prefixes.release(request.slot)
            if not request.future.done():
                request.future.set_exception(error)
        self._running, self._waiting, self._plan, self._in_flight = [], deque(), None, None

    def _drop(self, request: Request) -> None:
        if request in self._running:
            self._running.remove(request)
            self._prefixes.release(request.slot)
        elif request in self._waiting:
            self._waiting.remove(request)

    @torch.inference_mode()
    def _step(self) -> None:
        """Run one pass over prompts and, after the last one, the step of the requests that decode.

        Between passes other tasks have a turn: long prompts of many requests need minutes of them, and who cancels
        these requests waits for the present pass only.
        """
        # The task behind a cancelled future is about to drop its request, but has not had its turn yet.
        for request in [r for r in (*self._running, *self._waiting) if r.future.done()]:
            self._drop(request)
        if self._plan is None:
            if self._is_time_to_feed():
                self._admit()
            self._plan = StepPlan.of(self._running, self._max_prefill_tokens)
        if group := self._plan.next_to_feed():
            self._forward(group)
        if not self._plan.feeding:
            decoding, self._plan = unfinished(self._plan.decoding), None
            self._decode(decoding)

    def _is_time_to_feed(self) -> bool:
        """Whether new requests start now, or wait for others with which they share a pass over their prompts.

        Such a pass is launched kernel by kernel and takes as long as several captured steps, however short prompts are.
        """
        self._num_steps_unfed += 1
        is_late = self._num_steps_unfed >= _MOST_STEPS_UNFED
        are_enough = _FED_AT_ONCE * len(self._waiting) >= len(self._running)
        if self._decoder is not None and not (is_late or are_enough):
            return False
        if self._waiting:
            self._num_steps_unfed = 0
        return True

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_num_seqs and self._prefixes.num_idle:
            request = self._waiting[0]  # stays listed until it has a slot, so that a failure reaches its future
            source, length = self._prefixes.match(request.tokens)
            request.slot = self._prefixes.acquire(source, length)
            if length and request.slot != source:
                self._cache.copy_prefix(source, request.slot, length)
            request.num_computed = request.num_cached = length
            self.counters.num_prompt_tokens += request.prompt_length
            self.counters.num_cached_tokens += length
            self._running.append(self._waiting.popleft())

    def _forward(self, requests: list[Request]) -> None:
        logits = head_logits(self._model, self._logit_map, self._hidden_states(requests))
        kind = StepKind.of(requests)
        params = [request.params for request in requests]
        seeds = torch.tensor([p.seed for p in params], device=self._device)
        positions = torch.tensor([len(request.tokens) for request in requests], device=self._device)
        sampled = sample_tokens(
            logits,
            torch.tensor([float(p.temperature) for p in params], device=self._device),
            torch.tensor([float(p.top_p) for p in params], device=self._device),
            torch.tensor([p.top_k for p in params], device=self._device),
            counter_uniforms(seeds, positions),
            drawn_from=drawing_scores(logits, requests),
            restricts=kind.restricts,
            has_greedy=kind.has_greedy,
        )
        self._note_computed(requests)
        self._record(requests, unpack(pack(sampled, kind.num_top), range(len(requests))))

    def _decode(self, requests: list[Request]) -> None:
        """Run or start a step for requests with one token to feed, which may still be on its way from the last step."""
        before, self._in_flight = self._in_flight, None
        # A captured step does not know which tokens there were, so that rows with a penalty go kernel by kernel.
        is_captured = self._decoder is not None and not any(map(is_penalised, requests))
        if self._decoder is not None and is_captured:
            going_on = [each for each in requests if each.num_pending or not each.ends_with_next(self._max_model_len)]
            try:
                self._in_flight = self._decoder.launch(going_on, before) if going_on else None
            except CaptureError as error:
                give_up_graphs(error, insists=self._insists_on_graphs)
                self._decoder = None
        if before is not None:
            self._record(before.requests, before.read())
        if self._in_flight is not None:
            # The tokens that it reads are known now.
            self._note_computed(unfinished(self._in_flight.requests))
        elif (self._decoder is None or not is_captured) and (rest := unfinished(requests)):
            self._forward(rest)

    def _note_computed(self, requests: list[Request]) -> None:
        for request in requests:
            request.num_computed = len(request.tokens)
            self._prefixes.commit(request.slot, request.tokens, request.num_computed)

    def _hidden_states(self, requests: list[Request]) -> Float[Tensor, "batch hidden"]:
        pending = [request.tokens[request.num_computed :] for request in requests]
        width = max(map(len, pending))
        span = max(len(request.tokens) for request in requests) + 1
        ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in pending], device=self._device)
        starts = torch.tensor([request.num_computed for request in requests], device=self._device)
        counts = torch.tensor([len(tokens) for tokens in pending], device=self._device)
        offsets = torch.arange(width, device=self._device)
        positions = starts[:, None] + offsets
        writes = torch.where(offsets < counts[:, None], positions, span - 1)
        rows = torch.tensor(self._cache.rows.of(request.slot for request in requests), device=self._device)
        self._cache.prepare(rows, writes, span)
        output = self._model.model(
            input_ids=ids,
            attention_mask=self._mask(positions, span),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        last: Tensor = output.last_hidden_state[torch.arange(len(requests), device=self._device), counts - 1]
        return last

    def _mask(self, positions: Int[Tensor, "batch seq"], span: int) -> Bool[Tensor, "batch 1 seq span"]:
        return (torch.arange(span, device=self._device) <= positions[..., None])[:, None]

    def _record(self, requests: list[Request], drawn: Drawn) -> None:
        self.counters.num_forward_passes += 1
        for row, request in enumerate(requests):
            if request.future.done():
                continue  # it ended after the step had been started
            self.counters.num_generated_tokens += 1
            token, logprob = drawn.token_ids[row], drawn.logprobs[row]
            request.tokens.append(token)
            request.logprobs.append(logprob)
            request.entropies.append(drawn.entropies[row])
            if num_top := request.params.num_top_logprobs:
                extra = [] if token in drawn.top_ids[row][:num_top] else [logprob]
                request.top_logprobs.append(drawn.top_logprobs[row][:num_top] + extra)
            self._advance(request)

    def _advance(self, request: Request) -> None:
        reason = request.finish_reason(self._eos_token_ids, self._pieces, self._max_model_len)
        probe_is_due = request.num_new == request.params.num_probe_tokens or reason is not None
        if request.on_probe is not None and probe_is_due:
            callback, request.on_probe = request.on_probe, None
            callback(request.generation(reason or FinishReason.LENGTH))
        if reason is not None:
            self._running.remove(request)
            self._prefixes.release(request.slot)
            if not request.future.done():
                request.future.set_result(request.generation(reason))
