"""A pool of vLLM servers, on other GPUs or other nodes: the engine for generation that scales apart from training.

Token ids go in and come out; tokens are drawn by the sampler of the embedded engine, inside the servers. A generation
with a probe is two requests, up to the probe and after it, because a stream of single tokens would cost a server more
than a second request that finds its prefix cached. What was reported as a probe therefore stays the beginning of the
result, even if another endpoint finishes it.

Until weights are published, servers answer with those they were started with. On several ranks, each rank has a client
of its own for the same pool, and rank 0 publishes.
"""

import asyncio
import itertools
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

from torch import Tensor

from aepo_lightning.contracts.engine import LowRankUpdate
from aepo_lightning.contracts.generation import FinishReason, Generation, SamplingParams
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.distributed.collectives import all_reduce, from_rank_zero
from aepo_lightning.engines.request import Request
from aepo_lightning.engines.stopping import TokenPieces
from aepo_lightning.engines.vllm.entropy import NUM_TOP
from aepo_lightning.engines.vllm.launch import rank
from aepo_lightning.engines.vllm.requests import RequestStyle
from aepo_lightning.engines.vllm_server.admission import Admission
from aepo_lightning.engines.vllm_server.answer import TokenAnswer, TokenQuery
from aepo_lightning.engines.vllm_server.endpoint import Endpoint
from aepo_lightning.engines.vllm_server.http import EndpointError, Fault, ServerClient, ServerSettings
from aepo_lightning.engines.vllm_server.pool import ServerPool
from aepo_lightning.engines.vllm_server.publication_files import Publication
from aepo_lightning.engines.vllm_server.publications import Publications
from aepo_lightning.errors import ConfigError, EngineError, boundary
from aepo_lightning.event_loop import LoopThread
from aepo_lightning.policy.end_tokens import eos_token_ids

logger = logging.getLogger(__name__)


class VLLMServerEngine:
    """Generation by a pool of vLLM servers; satisfies `Engine` and `AdapterEngine` of `contracts.engine`."""

    def __init__(
        self,
        policy: PolicySource,
        *,
        endpoints: list[str],
        max_model_len: int,
        max_num_seqs: int = 256,
        max_staleness: int = 0,
        weights_dir: str | None = None,
        **settings: Any,
    ) -> None:
        """Keep the settings; the servers are looked at when tokens are asked for or weights are published.

        Args:
            policy: Architecture and tokenizer; its weights are not used.
            endpoints: Addresses of servers, such as `http://node:8000`.
            max_model_len: Longest sequence in tokens; at most the servers' own.
            max_num_seqs: Requests that one endpoint gets at once; more wait here.
            max_staleness: How many publications the weights of an endpoint may be behind. Only an endpoint that could
                not read the newest files lags.
            weights_dir: A folder that this process writes and all servers read. None: this machine's memory.
            settings: Fields of `ServerSettings`: retries, deadlines, health checks, outages, `sleep_level`, `api_key`.

        Raises:
            ConfigError: If there are no endpoints or one comes twice, or a number has no meaning.
        """
        if not endpoints or len(set(endpoints)) < len(endpoints):
            raise ConfigError(f"`endpoints` must be distinct addresses, at least one, but got {endpoints}.")
        if max_model_len < 2 or max_num_seqs < 1 or max_staleness < 0:
            raise ConfigError(
                "`max_model_len` must be at least 2, `max_num_seqs` at least 1 and `max_staleness` at least 0, but "
                f"got {max_model_len}, {max_num_seqs} and {max_staleness}."
            )
        self._settings = ServerSettings(**settings)
        style = RequestStyle(
            vocab_size=policy.config.vocab_size,
            eos_token_ids=eos_token_ids(policy),
            max_model_len=max_model_len,
        )
        self._admission = Admission(style, self._settings, max_staleness, self.fall_back_to_top_k)
        self._pool = ServerPool(
            [
                Endpoint(ServerClient(url, self._settings), index, asyncio.Semaphore(max_num_seqs))
                for index, url in enumerate(endpoints)
            ],
            self._settings,
            self._admission,
            self._admission.check,
        )
        self._publications = Publications(policy.config, weights_dir, self._settings.chunk_bytes)
        self._base = ""
        self._pieces = TokenPieces(policy.tokenizer)
        self._thread: LoopThread | None = None
        self._run = uuid4().hex[:8]
        self._numbers = itertools.count()
        self._num_running = 0
        self._has_weights = True
        self._is_asleep = self._is_closed = False
        self.weights_version = 0

    @property
    def max_model_len(self) -> int:
        """Longest sequence (prompt and response together) in tokens."""
        return self._admission.style.max_model_len

    @property
    def entropy_source(self) -> str:
        """Whether entropies are exact or those of the twenty largest log-probs, a lower bound."""
        return "exact" if self._admission.style.is_exact else f"top_{NUM_TOP}"

    def fall_back_to_top_k(self, reason: str) -> None:
        """From now on, let vLLM draw tokens and take the entropy of the twenty largest log-probs.

        Args:
            reason: Why; it is part of the warning.
        """
        if self._admission.style.is_exact:
            logger.warning(
                "%s Entropies are those of the 20 largest log-probs from now on, a lower bound, and one seed gives "
                "other tokens than in other engines.",
                reason,
            )
            self._admission.style = replace(self._admission.style, is_exact=False)

    async def generate(
        self, prompt_ids: list[int], params: SamplingParams, on_probe: Callable[[Generation], None] | None = None
    ) -> Generation:
        """Continue `prompt_ids`; see `contracts.engine.Engine.generate`.

        Raises:
            EngineError: If the prompt is empty or leaves no room in the context, a server refuses the request, no
                server is left, or the engine sleeps or was closed.
        """
        self._admission.style.check_prompt(prompt_ids)
        self._check_awake()
        request = Request.start(prompt_ids, params, on_probe)
        self._num_running += 1
        try:
            return await self._complete(request)
        finally:
            self._num_running -= 1

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Give every endpoint the weights, by their Hugging Face names, and have it forget cached prefixes.

        All ranks call it together: rank 0 sends, the others take part in gathering the weights and wait.

        Raises:
            EngineError: If requests are running, a name is unknown, a shape differs, a weight is missing, or no
                endpoint took the weights. The engine then refuses to generate until a publication succeeds.
        """
        self._base = ""
        source = iter(weights)
        self._publish(source, lambda name: self._publications.whole(source, name), version)

    @property
    def base(self) -> str:
        """Name of the base whose files are kept; empty if there is none."""
        return self._base

    def load_base(self, weights: Iterable[tuple[str, Tensor]], adapted: Collection[str], base: str) -> None:
        """Write weights for the servers to read below adapters; collective like `load_weights`.

        Raises:
            EngineError: If requests are running, or the weights are not those of the model or cannot be written.
        """
        self._base = ""
        source = iter(weights)
        self._together(source, lambda: self._publications.keep_base(source, adapted))
        self._base = base

    def load_adapter(self, updates: Iterable[LowRankUpdate], version: int) -> None:
        """Have every endpoint merge an adapter into the base; collective like `load_weights`.

        Raises:
            EngineError: As `load_weights`, or if there is no base or the updates are not those that it announced.
        """
        source = iter(updates)
        self._publish(source, lambda name: self._publications.with_adapter(source, name), version)

    def sleep(self) -> None:
        """Have the servers free what `sleep_level` says, until the next `load_weights`; does nothing at level 0.

        A server that fails at it, such as one that restarts, is named in the log and stays awake until then.

        Raises:
            EngineError: If requests are running, or a server has no way to sleep.
        """
        if self._num_running:
            raise EngineError("The engine must not sleep while requests run. Await every `generate` call first.")
        if not self._settings.sleep_level or self._is_asleep or self._is_closed:
            return
        all_reduce([0.0])
        problems: list[Exception] = []
        self._pool.is_watching = False
        if rank() == 0:
            with boundary(problems.append):
                self._in_thread().run(self._send_to_sleep())
        problem = from_rank_zero(str(problems[0]) if problems else "")
        if problem:
            raise EngineError(problem)
        self._is_asleep = True

    def close(self) -> None:
        """Fail whatever still runs, leave the servers as they are, and delete published files; twice is allowed."""
        self._is_closed = True
        if self._thread is not None:
            self._thread.run(self._pool.close())
            self._thread.close()
            self._thread = None
        self._publications.clear()

    async def _complete(self, request: Request) -> Generation:
        endpoint: Endpoint | None = None
        reason: FinishReason | None = None
        while reason is None:
            query = self._query(request)

            async def ask(endpoint: Endpoint, query: TokenQuery = query) -> TokenAnswer:
                return await self._admission.ask(endpoint, query)

            work = self._pool.ask(query.token_ids, ask, endpoint)
            answer, endpoint = await self._in_thread().call(work)
            if not request.num_new:
                request.num_cached = answer.num_cached_tokens
            reason = self._record(answer, request)
            is_due = request.num_new >= request.params.num_probe_tokens or reason is not None
            if request.on_probe is not None and is_due:
                callback, request.on_probe = request.on_probe, None
                callback(request.generation(reason or FinishReason.LENGTH))
        return request.generation(reason)

    def _query(self, request: Request) -> TokenQuery:
        room = min(
            request.params.max_tokens - request.num_new,
            self.max_model_len - len(request.tokens),
        )
        if request.on_probe is not None:
            room = min(room, request.params.num_probe_tokens)
        return TokenQuery(token_ids=list(request.tokens), params=request.params, max_tokens=room)

    def _record(self, answer: TokenAnswer, request: Request) -> FinishReason | None:
        """Add tokens up to the end of the generation; a server may have stopped somewhat later, or too early."""
        for index, token in enumerate(answer.token_ids):
            request.tokens.append(token)
            request.logprobs.append(answer.logprobs[index])
            request.entropies.append(answer.entropies[index])
            if answer.top_logprobs:
                request.top_logprobs.append(answer.top_logprobs[index])
            if (
                reason := request.finish_reason(self._admission.style.eos_token_ids, self._pieces, self.max_model_len)
            ) is not None:
                return reason
        return None

    def _check_awake(self) -> None:
        if self._is_closed:
            raise _closed()
        if self._is_asleep:
            raise EngineError("The engine sleeps. Publish weights first.")
        if not self._has_weights:
            raise EngineError("The last publication of weights failed. Publish weights first.")

    def _publish(self, source: Iterator[Any], write: Callable[[str], Publication], version: int) -> None:
        """Have rank 0 write a publication and every endpoint read it."""
        name = f"{self._run}-{next(self._numbers)}-v{version}"

        def hand_out() -> None:
            self._admission.expect(name, write(name))
            self._in_thread().run(self._pool.refresh())

        self._together(source, hand_out)
        name = from_rank_zero(name)
        if rank() != 0:
            self._admission.expect(name)
            self._pool.forget()
        self._has_weights, self._is_asleep, self.weights_version = True, False, version

    def _together(self, source: Iterator[Any], act: Callable[[], None]) -> None:
        """Act on rank 0, drain the source on all, and raise on all what went wrong on rank 0."""
        if self._num_running:
            raise EngineError("Weights must not change while requests run. Await every `generate` call first.")
        if self._is_closed:
            raise _closed()
        all_reduce([0.0])  # another rank may still generate, and updates abort what runs
        problems = list[Exception]()
        self._has_weights = False
        if rank() == 0:
            with boundary(problems.append):
                act()
        for _ in source:  # gathering is collective: also after an error, and on ranks that need nothing
            pass
        if problem := from_rank_zero(str(problems[0]) if problems else ""):
            raise EngineError(problem) from (problems[0] if problems else None)

    async def _send_to_sleep(self) -> None:
        path = f"/sleep?level={self._settings.sleep_level}&mode=wait"
        for endpoint in self._pool.endpoints:
            if not endpoint.is_usable:
                continue
            try:
                await endpoint.client.post(path, None, self._settings.update_timeout_s)
            except EndpointError as error:
                if error.fault is Fault.FINAL:
                    raise EngineError(
                        f"A server must be able to sleep for `sleep_level={self._settings.sleep_level}`, but "
                        f"{endpoint.client.url} {error} Start it with `--enable-sleep-mode`, or set `sleep_level=0`."
                    ) from error
                self._pool.take_out(endpoint, error)

    def _in_thread(self) -> LoopThread:
        if self._is_closed:
            raise _closed()
        if self._thread is None:
            self._thread = LoopThread(f"aepo-server-pool-{os.getpid()}", _closed)
        return self._thread


def _closed() -> EngineError:
    return EngineError("The engine was closed. Build a new one.")
