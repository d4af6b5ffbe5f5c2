"""vLLM in the trainer's process: the engine for GPUs, colocated with the ranks that train.

It is created when first used, which must be after the trainer has set up its process group: with random weights, so
that the first publication brings the real ones and no copy of them is written to disk. Prompts and responses are token
ids throughout; stop strings are found here, as in the embedded engine, so that special tokens can complete them.

Differences from the embedded engine: the random numbers behind a response depend on the seed, the length of the prompt
and the tokens since then, not on absolute positions; a temperature between 0 and 0.01 is refused. A rank is one engine:
tensor parallelism is left out, because it would need all ranks of a group to submit the same requests in the same
order, which independent rollouts do not.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable
from hashlib import blake2b
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from aepo_lightning.engines import vllm_launch
from aepo_lightning.engines.request import Request
from aepo_lightning.engines.stopping import StopMatcher, TokenPieces
from aepo_lightning.engines.vllm_entropy import unpack_entropy
from aepo_lightning.engines.vllm_weights import checked_weights
from aepo_lightning.errors import EngineError, boundary
from aepo_lightning.protocols import PolicySource
from aepo_lightning.types import FinishReason, Generation, SamplingParams

_MIN_TEMPERATURE = 0.01
"""vLLM silently raises smaller ones to this."""


class VLLMEngine:
    """Batched generation by vLLM; satisfies `protocols.Engine`."""

    def __init__(
        self,
        policy: PolicySource,
        *,
        max_model_len: int,
        max_num_seqs: int = 256,
        gpu_memory_utilization: float = 0.6,
        sleep_level: int = 2,
        dtype: str = "bfloat16",
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
            vllm_arguments: Further arguments of `vllm.LLM`, such as `enforce_eager` (default True), `block_size`,
                `kv_cache_memory_bytes` or `seed`.

        Raises:
            ValueError: If a size is not positive, the sleep level is unknown, or an engine is to span several ranks.
            EngineError: If vLLM is not installed.
        """
        if max_model_len < 2 or max_num_seqs < 1:
            raise ValueError(
                "`max_model_len` must be at least 2 and `max_num_seqs` at least 1, but got "
                f"{max_model_len} and {max_num_seqs}."
            )
        if sleep_level not in (1, 2):
            raise ValueError(f"`sleep_level` must be 1 or 2, but got {sleep_level}.")
        if vllm_arguments.get("tensor_parallel_size", 1) != 1:
            raise ValueError(
                f"`tensor_parallel_size` must be 1, but got {vllm_arguments['tensor_parallel_size']}. Each rank is an "
                "engine of its own; lower `max_num_seqs` or `max_model_len` if a GPU is too small."
            )
        vllm_launch.check_installed()
        self._policy = policy
        self._max_model_len = max_model_len
        self._sleep_level = sleep_level
        self._settings = {
            "max_model_len": max_model_len,
            "max_num_seqs": max_num_seqs,
            "gpu_memory_utilization": gpu_memory_utilization,
            "dtype": dtype,
            **vllm_arguments,
        }
        self._eos_token_id = policy.tokenizer.eos_token_id
        self._pieces = TokenPieces(policy.tokenizer)
        self._skeleton: Any = None
        self._llm: Any = None
        self._has_weights = self._is_asleep = self._is_closed = False
        self._requests: dict[str, Request] = {}
        self._names = map(str, itertools.count())
        self._loop_task: asyncio.Task[None] | None = None
        self.weights_version = 0

    @property
    def max_model_len(self) -> int:
        """Longest sequence (prompt and response together) in tokens."""
        return self._max_model_len

    async def generate(
        self, prompt_ids: list[int], params: SamplingParams, on_probe: Callable[[Generation], None] | None = None
    ) -> Generation:
        """Continue `prompt_ids`; see `protocols.Engine.generate`.

        Raises:
            EngineError: If the prompt is empty or leaves no room in the context, if vLLM refuses the request or fails,
                or if the engine sleeps or was closed.
        """
        if not 0 < len(prompt_ids) < self._max_model_len:
            raise EngineError(
                f"A prompt must have between 1 and {self._max_model_len - 1} tokens, but got {len(prompt_ids)}. "
                "Shorten the prompt or raise the engine's `max_model_len`."
            )
        if min(prompt_ids) < 0 or max(prompt_ids) >= self._policy.config.vocab_size:
            raise EngineError(
                f"Token ids of a prompt must be in [0, {self._policy.config.vocab_size}), but got {min(prompt_ids)} to "
                f"{max(prompt_ids)}. Encode the prompt with the policy's tokenizer."
            )
        if 0 < params.temperature < _MIN_TEMPERATURE:
            raise EngineError(f"`temperature` must be 0 or at least {_MIN_TEMPERATURE}, but got {params.temperature}.")
        self._prepare_to_generate()
        request = Request(
            list(prompt_ids),
            len(prompt_ids),
            params,
            asyncio.get_running_loop().create_future(),
            on_probe if params.num_probe_tokens else None,
            StopMatcher(params.stop),
        )
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
        if self._requests:
            raise EngineError("Weights must not change while requests run. Await every `generate` call first.")
        self._start()
        if self._is_asleep:
            self._llm.llm_engine.wake_up()
            self._is_asleep = False
        self._has_weights = False
        with boundary(_fail_with("vLLM could not load the weights")):
            vllm_launch.load(self._llm, checked_weights(self._skeleton, weights))
        if not self._llm.reset_prefix_cache():
            raise EngineError("vLLM kept cached prefixes of older weights. Await every `generate` call first.")
        self._has_weights, self.weights_version = True, version

    def sleep(self) -> None:
        """Free GPU memory until the next `load_weights`. Nothing happens on the CPU, where generation stays possible.

        Raises:
            EngineError: If requests are running.
        """
        if self._requests:
            raise EngineError("The engine must not sleep while requests run. Await every `generate` call first.")
        if self._llm is None or self._is_asleep or vllm_launch.is_cpu_build():
            return
        self._llm.llm_engine.sleep(level=self._sleep_level)
        self._is_asleep = True

    def close(self) -> None:
        """Fail whatever still runs and free the model; calling it twice is allowed."""
        self._fail(EngineError("The engine was closed."))
        self._is_closed = True
        if self._llm is not None:
            vllm_launch.shut_down(self._llm)
            self._llm = None

    def _start(self) -> None:
        if self._is_closed:
            raise EngineError("The engine was closed. Build a new one.")
        if self._llm is not None:
            return
        with vllm_launch.undisturbed_process(), torch.device("meta"):
            self._skeleton = AutoModelForCausalLM.from_config(self._policy.config)  # type: ignore[no-untyped-call]
        with boundary(_fail_with("vLLM could not start")):
            self._llm = vllm_launch.launch(self._skeleton, self._settings)

    def _prepare_to_generate(self) -> None:
        is_new = self._llm is None
        self._start()
        if self._is_asleep:
            raise EngineError("The engine sleeps. Publish weights first.")
        if is_new:
            self.load_weights(self._policy.build_model().named_parameters(), self.weights_version)
        if not self._has_weights:
            raise EngineError("The last publication of weights failed. Publish weights first.")

    def _submit(self, request: Request) -> str:
        params, vllm, name = request.params, import_module("vllm"), next(self._names)
        stops = [] if self._eos_token_id is None else [self._eos_token_id]
        with boundary(_fail_with("vLLM refused the request")):
            native = vllm.SamplingParams(
                max_tokens=params.max_tokens,
                temperature=params.temperature,
                top_p=params.top_p,
                top_k=params.top_k,
                seed=_request_seed(params.seed, request.prompt_length),
                logprobs=min(params.num_top_logprobs, self._policy.config.vocab_size),
                flat_logprobs=True,
                stop_token_ids=stops,
                ignore_eos=True,
                detokenize=False,
                output_kind=vllm.sampling_params.RequestOutputKind.DELTA,
            )
            self._llm.llm_engine.add_request(name, {"prompt_token_ids": request.tokens[:]}, native)
        self._requests[name] = request
        return name

    def _drop(self, name: str) -> None:
        if self._requests.pop(name, None) is not None:
            self._llm.llm_engine.abort_request([name])

    async def _serve(self) -> None:
        while self._requests:
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
        for name, request in list(self._requests.items()):
            self._drop(name)
            if not request.future.done():
                request.future.set_exception(error)

    def _step(self) -> None:
        # The task behind a cancelled future is about to drop its request, but has not had its turn yet.
        for name in [name for name, request in self._requests.items() if request.future.done()]:
            self._drop(name)
        if not self._requests:
            return
        # On the CPU, vLLM draws from the global generator before it puts the requests' own numbers in place.
        with torch.random.fork_rng(devices=[]):
            outputs = self._llm.llm_engine.step()
        for output in outputs:
            if (request := self._requests.get(output.request_id)) is not None:
                self._record(output, request)

    def _record(self, output: Any, request: Request) -> None:
        request.num_cached = output.num_cached_tokens or 0
        delta = output.outputs[0]
        logprobs = delta.logprobs
        for token, first, end in zip(delta.token_ids, logprobs.start_indices, logprobs.end_indices, strict=True):
            request.tokens.append(token)
            request.logprobs.append(logprobs.logprobs[first])
            request.entropies.append(unpack_entropy(logprobs.ranks[first]))
            if request.params.num_top_logprobs:
                top = logprobs.logprobs[first + 1 : end]
                is_extra = token not in logprobs.token_ids[first + 1 : end]
                request.top_logprobs.append(top + [logprobs.logprobs[first]] * is_extra)
            reason = self._finish_reason(request)
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

    def _finish_reason(self, request: Request) -> FinishReason | None:
        token = request.tokens[-1]
        if token == self._eos_token_id:
            return FinishReason.EOS
        if request.params.stop and request.stop.push(self._pieces[token]):
            return FinishReason.STOP
        if request.num_new >= request.params.max_tokens or len(request.tokens) >= self._max_model_len:
            return FinishReason.LENGTH
        return None


def _request_seed(seed: int, prompt_length: int) -> int:
    """Hash a seed to the 63 bits that vLLM takes; a branch under its trunk's seed does not repeat the trunk's noise.

    The generator of the CPU uses the lower 32 bits only, so the upper ones must not carry the difference.
    """
    digest = blake2b(f"{seed}:{prompt_length}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _fail_with(text: str) -> Callable[[Exception], None]:
    def fail(cause: Exception) -> None:
        if isinstance(cause, EngineError):
            raise cause
        raise EngineError(f"{text}: {cause!r}") from cause

    return fail
