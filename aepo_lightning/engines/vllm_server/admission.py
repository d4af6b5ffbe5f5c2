"""What an endpoint has to show before it gets requests: the right server, the right model, the right weights."""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.engines.vllm.entropy import NUM_TOP
from aepo_lightning.engines.vllm.requests import RequestStyle
from aepo_lightning.engines.vllm_server.answer import TokenAnswer, TokenQuery, parse_answer, request_body
from aepo_lightning.engines.vllm_server.endpoint import Endpoint
from aepo_lightning.engines.vllm_server.http import LAUNCH_ADVICE, EndpointError, Fault, ServerClient, ServerSettings
from aepo_lightning.engines.vllm_server.publication_files import Publication, UntouchedError, push

logger = logging.getLogger(__name__)

INSTALL = "aepo_install_sampler"
"""Method of `extension.Extension` that makes a worker draw and report as `vllm.sampler` describes."""
_OWN_WEIGHTS = "default"
"""What a server calls the weights that it was started with."""


class Admission:
    """Checks endpoints and brings them up to date."""

    def __init__(
        self, style: RequestStyle, settings: ServerSettings, max_staleness: int, fall_back: Callable[[str], None]
    ) -> None:
        """Expect servers with the weights that they were started with.

        Args:
            style: What requests have in common; `is_exact` is cleared by `fall_back`.
            settings: Deadlines.
            max_staleness: How many publications the weights of an endpoint may be behind.
            fall_back: Called with a reason when a server cannot report exact entropies.
        """
        self.style = style
        self._settings = settings
        self._fall_back = fall_back
        self._publication: Publication | None = None
        self._accepted: deque[str] = deque([_OWN_WEIGHTS], maxlen=max_staleness + 1)

    def expect(self, name: str, publication: Publication | None = None) -> None:
        """Make a publication the newest.

        Args:
            name: Of the publication.
            publication: Its files, if it is up to this process to hand them out.
        """
        if self._accepted[-1] == _OWN_WEIGHTS:
            self._accepted.clear()
        self._accepted.append(name)
        self._publication = publication

    async def __call__(self, endpoint: Endpoint) -> None:
        """Admit an endpoint.

        Raises:
            EndpointError: If it must not be used now.
        """
        client, problem = endpoint.client, ""
        await client.get("/health")
        if not endpoint.is_known:
            await self._check_model(client)
            problem = await _install(client)
            endpoint.is_known = True
        endpoint.version = await _version(client)
        await self._update(endpoint)
        await self._try_out(endpoint, problem)

    async def check(self, endpoint: Endpoint) -> None:
        """Look whether an endpoint lives and still has the weights that it had.

        Raises:
            EndpointError: If it does not answer in time, or was restarted, or another client changed its weights.
        """
        await endpoint.client.get("/health")
        endpoint.version = await _version(endpoint.client)
        self._check_versions({endpoint.version})

    async def ask(self, endpoint: Endpoint, query: TokenQuery) -> TokenAnswer:
        """Have an endpoint answer a query with weights that are new enough.

        Raises:
            EndpointError: If it fails, or answers with other weights, as a server does that was restarted.
            RequestError: If it refuses the query.
        """
        style = self.style  # of the request and of its answer, even if a fallback comes between them
        body = request_body(query, style)
        answer = parse_answer(await endpoint.client.generate(body), body, query, style)
        self._check_versions(answer.versions)
        return answer

    async def _check_model(self, client: ServerClient) -> None:
        longest = (await client.get("/v1/models"))["data"][0]["max_model_len"]
        if longest < self.style.max_model_len:
            raise EndpointError(
                f"serves sequences of {longest} tokens, fewer than the engine's `max_model_len` of "
                f"{self.style.max_model_len}. Start it with `--max-model-len {self.style.max_model_len}`",
                Fault.FINAL,
            )

    async def _update(self, endpoint: Endpoint) -> None:
        newest = self._accepted[-1]
        if self._publication is None or endpoint.version == newest:
            self._check_versions({endpoint.version})
            return
        try:
            if self._settings.sleep_level:
                await endpoint.client.post("/wake_up", None, self._settings.update_timeout_s)
            await push(endpoint.client, self._publication, self._settings.update_timeout_s)
        except UntouchedError as error:
            if endpoint.version not in self._accepted:
                raise
            logger.warning("%s keeps older weights: it %s", endpoint.client.url, error)
            return
        endpoint.version = newest

    def _check_versions(self, versions: set[str] | frozenset[str]) -> None:
        if not (stale := set(versions) - set(self._accepted)):
            return
        advice, fault = "", Fault.ANSWER
        if self._accepted[-1] == _OWN_WEIGHTS:
            advice, fault = " Restart it", Fault.FINAL
        elif self._publication is None:
            fault = Fault.BUSY  # the rank that publishes gives it the newest
        raise EndpointError(
            f"has the weights {sorted(stale)}, but must have one of {list(self._accepted)}.{advice}", fault
        )

    async def _try_out(self, endpoint: Endpoint, problem: str) -> None:
        """Ask for one token; shows whether tokens can be had at all, and with exact entropies."""
        params = SamplingParams(max_tokens=1, temperature=0.0, num_top_logprobs=NUM_TOP - 1)
        query, style = TokenQuery(token_ids=[0], params=params, max_tokens=1), self.style
        timeout_s = max(self._settings.health_timeout_s, self._settings.ready_timeout_s)  # may compile something first
        body = request_body(query, style)
        reply = await endpoint.client.generate(body, timeout_s)
        try:
            answer = parse_answer(reply, body, query, style)
        except EndpointError:
            # Without our sampler the same reply still holds the top log-probs.
            answer = parse_answer(reply, body, query, replace(style, is_exact=False))
            self._fall_back(f"{endpoint.client.url} does not report entropies{problem}. {LAUNCH_ADVICE}")
        self._check_versions(answer.versions)


async def _version(client: ServerClient) -> str:
    version = (await client.get("/weight_info"))["weight_version"]
    if not isinstance(version, str):
        raise EndpointError(f"names its weights {version!r:.80}, which is no text. {LAUNCH_ADVICE}", Fault.FINAL)
    return version


async def _install(client: ServerClient) -> str:
    """Put our sampler into every worker; return what went wrong."""
    try:
        await client.post("/collective_rpc", {"method": INSTALL})
    except EndpointError as error:
        return f" (it {error})"
    return ""
