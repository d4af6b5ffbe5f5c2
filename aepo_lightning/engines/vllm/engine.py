"""vLLM in the trainer's process: the engine for GPUs, colocated with the ranks that train.

It is created when first used, which must be after the trainer has set up its process group: with random weights, so
that the first publication brings the real ones and no copy of them is written to disk. Prompts and responses are token
ids throughout; stop strings are found here, as in the embedded engine, so that special tokens can complete them.

Tokens are drawn by the sampler of the embedded engine (`vllm.sampler`), so that one seed gives the same tokens in both.
Each rank has an engine of its own, or with `tensor_parallel_size` its part of one, which the chains of all ranks of the
group share (`group`).
"""

import asyncio
import itertools
from collections.abc import Callable, Collection, Iterable
from typing import Any

from torch import Tensor

from aepo_lightning.contracts.engine import LowRankUpdate
from aepo_lightning.contracts.generation import FinishReason, Generation, SamplingParams
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.engines.request import Request
from aepo_lightning.engines.stopping import TokenPieces
from aepo_lightning.engines.vllm import launch as vllm_launch
from aepo_lightning.engines.vllm.core import VLLMCore
from aepo_lightning.engines.vllm.entropy import NUM_TOP
from aepo_lightning.engines.vllm.group import PAUSE_S, GroupExchange, Lockstep, Stepper
from aepo_lightning.errors import ConfigError, EngineError, boundary


class VLLMEngine:
    """Batched generation by vLLM; satisfies `contracts.engine.Engine` and `contracts.engine.AdapterEngine`."""

    def __init__(
        self,
        policy: PolicySource,
        *,
        max_model_len: int,
        max_num_seqs: int = 256,
        gpu_memory_utilization: float = 0.6,
        sleep_level: int = 2,
        dtype: str = "bfloat16",
        keep_base: bool = True,
        **vllm_arguments: Any,
    ) -> None:
        """Keep the settings; vLLM itself starts when weights are published or tokens are asked for.

        Args:
            policy: Architecture, tokenizer, and the weights that serve until some are published.
            max_model_len: Longest sequence in tokens.
            max_num_seqs: Requests that run at once; more wait.
            gpu_memory_utilization: Share of the GPU's memory for weights and cache, while awake.
            sleep_level: What `sleep` frees on a GPU: 1 moves the weights to host memory and drops the cache, 2 drops
                both.
            dtype: Precision that vLLM computes in.
            keep_base: While an adapter is trained, keep the weights below it in this rank's host memory, so that only
                the adapter is published. False publishes merged weights and needs no such memory.
            vllm_arguments: Further arguments of `vllm.LLM`, such as `enforce_eager` (default True), `block_size`,
                `kv_cache_memory_bytes`, `seed`, or `tensor_parallel_size`: over how many consecutive ranks an engine
                is spread.

        Raises:
            ConfigError: If a size is not positive or the sleep level is unknown.
            EngineError: If vLLM is not installed.
        """
        if max_model_len < 2 or max_num_seqs < 1:
            raise ConfigError(
                "`max_model_len` must be at least 2 and `max_num_seqs` at least 1, but got "
                f"{max_model_len} and {max_num_seqs}."
            )
        if sleep_level not in (1, 2):
            raise ConfigError(f"`sleep_level` must be 1 or 2, but got {sleep_level}.")
        num_ranks = vllm_arguments.get("tensor_parallel_size") or 1
        if num_ranks < 1:
            raise ConfigError(f"`tensor_parallel_size` must be positive, but got {num_ranks}.")
        vllm_launch.check_installed()
        self._max_model_len = max_model_len
        settings = {
            "max_model_len": max_model_len,
            "max_num_seqs": max_num_seqs,
            "gpu_memory_utilization": gpu_memory_utilization,
            "dtype": dtype,
            **vllm_arguments,
        }
        self._dtype = dtype
        self._keep_base = keep_base
        self._core = VLLMCore(policy, settings, sleep_level)
        self._group = Lockstep(self._core, GroupExchange(num_ranks)) if num_ranks > 1 else None
        self._steps: Stepper = self._group or self._core
        self._pieces = TokenPieces(policy.tokenizer)
        self._requests: dict[str, Request] = {}
        self._names = itertools.count()
        self._loop_task: asyncio.Task[None] | None = None
        self.weights_version = 0

    @property
    def dtype(self) -> str:
        """Precision that vLLM computes in, as it was chosen."""
        return self._dtype

    @property
    def max_model_len(self) -> int:
        """Longest sequence (prompt and response together) in tokens."""
        return self._max_model_len

    @property
    def entropy_source(self) -> str:
        """What `Generation.entropies` are: "exact", or "top_20" for the lower bound `ops.entropy.top_k_entropy`."""
        return "exact" if self._core.style.is_exact else f"top_{NUM_TOP}"

    async def generate(
        self, prompt_ids: list[int], params: SamplingParams, on_probe: Callable[[Generation], None] | None = None
    ) -> Generation:
        """Continue `prompt_ids`; see `contracts.engine.Engine.generate`.

        Raises:
            EngineError: If the prompt is empty or leaves no room in the context, if vLLM refuses the request or fails,
                or if the engine sleeps or was closed.
        """
        self._core.style.check_prompt(prompt_ids)
        self._core.prepare_to_generate()
        request = Request.start(prompt_ids, params, on_probe)
        name = self._submit(request)
        # A loop that was stopped half-way leaves a task behind that will never run again.
        task = self._loop_task
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            self._loop_task = asyncio.create_task(self._serve())
        try:
            return await request.future
        except asyncio.CancelledError:
            self._drop(name)
            raise

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Load weights by their Hugging Face names and forget every cached prefix; wakes the engine.

        The first call starts vLLM, on all ranks at once.

        Raises:
            EngineError: If requests are running, a name is unknown, a shape differs, or a weight is missing. The engine
                then refuses to generate until a publication succeeds.
        """
        self._prepare_to_load()
        self._core.base.clear()
        self._core.load(weights)
        self.weights_version = version

    @property
    def base(self) -> str | None:
        """Name of the base in host memory; empty if there is none, None with `keep_base=False`."""
        return self._core.base.name if self._keep_base else None

    def load_base(self, weights: Iterable[tuple[str, Tensor]], adapted: Collection[str], base: str) -> None:
        """Keep weights in host memory; see `contracts.engine.AdapterEngine.load_base`.

        Raises:
            EngineError: As `load_weights`.
        """
        self._prepare_to_load()
        self._core.load_base(weights, adapted, base)

    def load_adapter(self, updates: Iterable[LowRankUpdate], version: int) -> None:
        """Load the base with an adapter merged into it, forget every cached prefix, and wake the engine.

        Raises:
            EngineError: As `load_weights`, or if there is no base or the updates are not those that it announced.
        """
        self._prepare_to_load()
        self._core.load_adapter(updates)
        self.weights_version = version

    def _prepare_to_load(self) -> None:
        if self._requests:
            raise EngineError("Weights must not change while requests run. Await every `generate` call first.")
        self.settle()

    def fall_back_to_top_k(self, reason: str) -> None:
        """Stop trusting the entropies from inside vLLM: report the lower bound from the largest log-probs instead.

        Tokens are then drawn by vLLM's own sampler, so that a seed repeats only within this engine, and with top-p or
        top-k the log-probs are those of the restricted distribution. A second call does nothing. All ranks of a
        tensor-parallel group must call it at once.

        Args:
            reason: What was found, for the warning.

        Raises:
            EngineError: If requests are running.
        """
        if self._requests:
            raise EngineError("Entropies must not change while requests run. Await every `generate` call first.")
        self._core.fall_back_to_top_k(reason)

    def sleep(self) -> None:
        """Free GPU memory until the next `load_weights`. Nothing happens on the CPU, where generation stays possible.

        Raises:
            EngineError: If requests are running.
        """
        if self._requests:
            raise EngineError("The engine must not sleep while requests run. Await every `generate` call first.")
        self.settle()
        self._core.sleep()

    def settle(self) -> None:
        """Serve the other ranks of a tensor-parallel group until they have no requests either; else do nothing.

        `sleep` and `load_weights` begin with it. Every rank must call one of the three after its rollout, before it
        waits for another rank in any other way.

        Raises:
            EngineError: If requests are running, or another rank failed or is silent for `group.TIMEOUT_S`.
        """
        if self._requests:
            raise EngineError("The rollout is not over while requests run. Await every `generate` call first.")
        if self._group is not None and self._core.is_started:
            self._group.settle()

    def close(self) -> None:
        """Fail whatever still runs and free the model; calling it twice is allowed."""
        self._fail(EngineError("The engine was closed."))
        if self._group is not None:
            self._group.close()
        self._core.close()

    def _submit(self, request: Request) -> str:
        # The rank makes names unique within a tensor-parallel group.
        name = f"{vllm_launch.rank()}:{next(self._names)}"
        self._steps.add(name, request.tokens, request.params)
        self._requests[name] = request
        return name

    def _drop(self, name: str) -> None:
        if self._requests.pop(name, None) is not None:
            self._steps.abort(name)

    async def _serve(self) -> None:
        while self._requests or (self._group is not None and self._group.is_serving):
            # Chains that were woken by the last pass get a turn each to ask for more, so that they batch together.
            for _ in range(4):
                await asyncio.sleep(0)
            with boundary(self._on_step_error):
                self._step()
            if self._group is not None and self._group.is_idle:
                await asyncio.sleep(PAUSE_S)

    def _on_step_error(self, cause: Exception) -> None:
        if isinstance(cause, EngineError):
            self._fail(cause)
            return
        error = EngineError(f"A generation step failed: {cause!r}")
        error.__cause__ = cause
        self._fail(error)

    def _fail(self, error: EngineError) -> None:
        for name, request in list(self._requests.items()):
            self._drop(name)
            if not request.future.done():
                request.future.set_exception(error)

    def _step(self) -> None:
        # The task behind a cancelled future is about to drop its request, but has not had its turn yet.
        for name in [name for name, request in self._requests.items() if request.future.done()]:
            self._drop(name)
        if not self._requests and self._group is None:
            return
        for output in self._steps.step():
            if (request := self._requests.get(output.request_id)) is not None:
                self._record(output, request)

    def _record(self, output: Any, request: Request) -> None:
        request.num_cached = output.num_cached_tokens or 0
        delta = output.outputs[0]
        for token in self._core.style.tokens(delta, request.params.num_top_logprobs):
            request.tokens.append(token.token_id)
            request.logprobs.append(token.logprob)
            request.entropies.append(token.entropy)
            if request.params.num_top_logprobs:
                request.top_logprobs.append(token.top_logprobs)
            reason = request.finish_reason(self._core.style.eos_token_ids, self._pieces, self._max_model_len)
            self._advance(output.request_id, request, reason)
            if reason is not None:
                return
        if output.finished:
            raise EngineError(f"vLLM ended a request early: {delta.finish_reason!r}.")

    def _advance(self, name: str, request: Request, reason: FinishReason | None) -> None:
        probe_is_due = request.num_new == request.params.num_probe_tokens or reason is not None
        if request.on_probe is not None and probe_is_due:
            callback, request.on_probe = request.on_probe, None
            callback(request.generation(reason or FinishReason.LENGTH))
        if reason is not None:
            self._drop(name)
            if not request.future.done():
                request.future.set_result(request.generation(reason))
