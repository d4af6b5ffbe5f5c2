"""One started vLLM: its life (weights, sleep, failure) and its steps. Who waits for which token is `engine`'s."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aepo_lightning.contracts.engine import LowRankUpdate
from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.engines.adapters import AdapterBase
from aepo_lightning.engines.vllm import launch as vllm_launch
from aepo_lightning.engines.vllm.check import BOUND, entropy_problem
from aepo_lightning.engines.vllm.entropy import NUM_TOP
from aepo_lightning.engines.vllm.requests import RequestStyle
from aepo_lightning.engines.vllm.sampler import install
from aepo_lightning.errors import EngineError, boundary
from aepo_lightning.policy.checked_weights import checked_weights, copies
from aepo_lightning.policy.end_tokens import eos_token_ids
from aepo_lightning.policy.skeleton import meta_model

logger = logging.getLogger(__name__)


class VLLMCore:
    """vLLM in this process, from its start, which is put off until it is needed, to its end."""

    def __init__(self, policy: PolicySource, settings: dict[str, Any], sleep_level: int) -> None:
        """Keep the settings.

        Args:
            policy: Architecture, tokenizer, and the weights that serve until some are loaded.
            settings: Arguments of `vllm.LLM`.
            sleep_level: What `sleep` frees on a GPU.
        """
        self._policy = policy
        self._settings = settings
        self._sleep_level = sleep_level
        self.style = RequestStyle(
            vocab_size=policy.config.vocab_size,
            eos_token_ids=eos_token_ids(policy),
            max_model_len=settings["max_model_len"],
        )
        self._skeleton: PreTrainedModel | None = None
        self._llm: Any = None
        self.base = AdapterBase(device="cpu")
        """In host memory, which `sleep` leaves alone."""
        self._has_weights = self._is_asleep = self._is_closed = self._is_checked = False
        self._death: EngineError | None = None

    @property
    def is_started(self) -> bool:
        """Whether vLLM runs in this process."""
        return self._llm is not None

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Start or wake vLLM, load weights and forget every cached prefix. No request may be running.

        Raises:
            EngineError: If vLLM does not start, has failed or was closed, or the weights are not those of the model.
        """
        self._start()
        if self._is_asleep:
            self._llm.llm_engine.wake_up()
            self._is_asleep = False
        self._has_weights = False
        with boundary(fail_with("vLLM could not load the weights")):
            vllm_launch.load(self._llm, self._checked(weights))
        if not self._llm.reset_prefix_cache():
            raise EngineError("vLLM kept cached prefixes of older weights. Await every `generate` call first.")
        self._has_weights = True
        self._check()

    def load_base(self, weights: Iterable[tuple[str, Tensor]], adapted: Collection[str], name: str) -> None:
        """Keep weights in host memory, below adapters to come; vLLM gets them with the first.

        Raises:
            EngineError: If vLLM does not start, has failed or was closed, or the weights are not those of the model.
        """
        self._start()
        self._has_weights = False
        kept = self.base.keeping(self._checked(weights), adapted, name, all_weights=True)
        for _ in kept:
            pass

    def load_adapter(self, updates: Iterable[LowRankUpdate]) -> None:
        """Load the base with an adapter merged into it, as `load` loads weights.

        Raises:
            EngineError: As `load`, or if there is no base or the updates are not those that it announced.
        """
        self.load(self.base.merged(updates))

    def prepare_to_generate(self) -> None:
        """Start vLLM with the policy's own weights if it has none yet.

        Raises:
            EngineError: If it cannot generate, with what to do.
        """
        is_new = self._llm is None
        self._start()
        if self._is_asleep:
            raise EngineError("The engine sleeps. Publish weights first.")
        if is_new:
            self.load(self._policy.build_model().named_parameters())
        if not self._has_weights:
            raise EngineError("The last publication of weights failed. Publish weights first.")

    def add(self, name: str, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        """Queue one request.

        Raises:
            EngineError: If vLLM refuses it.
        """
        with boundary(fail_with("vLLM refused the request")):
            native = self.style.native(params, len(prompt_ids))
            self._llm.llm_engine.add_request(name, {"prompt_token_ids": list(prompt_ids)}, native)

    def abort(self, name: str) -> None:
        """Forget one request."""
        if self._death is None:
            self._llm.llm_engine.abort_request([name])

    def step(self) -> list[Any]:
        """Compute one token for the running requests and return vLLM's outputs.

        Raises:
            EngineError: If vLLM failed. It is then of no further use.
        """
        # On the CPU, vLLM's own draws take from the global generator before it puts the requests' numbers in place.
        with boundary(self._die), torch.random.fork_rng(devices=[]):
            outputs: list[Any] = self._llm.llm_engine.step()
        return outputs

    def num_unfinished(self) -> int:
        """Return how many requests vLLM still has."""
        return 0 if self._llm is None else int(self._llm.llm_engine.get_num_unfinished_requests())

    def fall_back_to_top_k(self, reason: str) -> None:
        """Give vLLM its own sampler back, with a warning; see `VLLMEngine.fall_back_to_top_k`."""
        if not self.style.is_exact:
            return
        self.style = replace(self.style, is_exact=False)
        self._use_sampler()
        logger.warning(
            "vLLM's entropies must be exact within %g nats, but are not. %s They are now lower bounds from the %d "
            "largest log-probs (`engines.vllm.entropy.top_k_entropy_gap` bounds the rest), tokens are drawn by vLLM "
            "itself, and with top-p or top-k the log-probs are those of the restricted distribution. Use one of the "
            "vLLM releases in docs/engines.md.",
            BOUND,
            reason,
            NUM_TOP,
        )

    def sleep(self) -> None:
        """Free GPU memory until the next `load`; nothing on the CPU."""
        if self._llm is None or self._is_asleep or vllm_launch.is_cpu_build():
            return
        self._llm.llm_engine.sleep(level=self._sleep_level)
        self._is_asleep = True

    def close(self) -> None:
        """Free the model; calling it twice is allowed."""
        self._is_closed = True
        if self._llm is not None:
            vllm_launch.shut_down(self._llm)
            self._llm = None

    def _start(self) -> None:
        if self._is_closed:
            raise EngineError("The engine was closed. Build a new one.")
        if self._death is not None:
            raise EngineError(str(self._death)) from self._death.__cause__
        if self._llm is not None:
            return
        num_ranks = self._settings.get("tensor_parallel_size") or 1
        if vllm_launch.world_size() % num_ranks:
            raise EngineError(
                f"`tensor_parallel_size` must divide the number of ranks, but got {num_ranks} for "
                f"{vllm_launch.world_size()}. Start as many ranks as there are GPUs."
            )
        self._skeleton = meta_model(self._policy.config)
        with boundary(fail_with("vLLM could not start")):
            self._llm = vllm_launch.launch(self._skeleton, self._settings)
        with boundary(lambda cause: self.fall_back_to_top_k(f"{cause!r}.")):
            self._use_sampler()

    def _checked(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Check weights and copy them: vLLM keeps tensors until their layer is complete."""
        assert self._skeleton is not None, "`_start` has built it"
        return copies(checked_weights(self._skeleton, weights, EngineError))

    def _use_sampler(self) -> None:
        if self._llm is None:
            return
        if self.style.is_exact:
            install(vllm_launch.worker(self._llm).model_runner)
        else:
            vllm_launch.use_own_sampler(self._llm)
            vllm_launch.read_prompts_whole(self._llm)

    def _check(self) -> None:
        if self._is_checked or not self.style.is_exact:
            return
        with boundary(self._die):
            problem = entropy_problem(self._llm, self.style)
        self._is_checked = True
        if problem:
            self.fall_back_to_top_k(problem)

    def _die(self, cause: Exception) -> None:
        self._death = EngineError(
            f"vLLM failed in the middle of a step and cannot go on: {cause!r}. Build a new engine, and if memory ran "
            "out, with smaller `max_num_seqs`, `max_model_len` or `gpu_memory_utilization`."
        )
        raise self._death from cause


def fail_with(text: str) -> Callable[[Exception], None]:
    """Return what `errors.boundary` needs to turn any exception into an `EngineError` that starts with `text`."""

    def fail(cause: Exception) -> None:
        if isinstance(cause, EngineError):
            raise cause
        raise EngineError(f"{text}: {cause!r}") from cause

    return fail
