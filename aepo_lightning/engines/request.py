"""One generation on its way through an engine."""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from aepo_lightning.contracts.generation import FinishReason, Generation, SamplingParams
from aepo_lightning.engines.stopping import StopMatcher, TokenPieces


@dataclass(slots=True, eq=False)
class Request:
    """What the engine knows about one call of `generate`."""

    tokens: list[int]
    """Prompt and what was sampled so far."""
    prompt_length: int
    params: SamplingParams
    future: "asyncio.Future[Generation]"
    on_probe: Callable[[Generation], None] | None
    """None once it was called."""
    stop: StopMatcher
    slot: int = -1
    num_computed: int = 0
    """Leading tokens whose keys and values are in the slot."""
    num_cached: int = 0
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    top_logprobs: list[list[float]] = field(default_factory=list)

    @classmethod
    def start(
        cls, prompt_ids: list[int], params: SamplingParams, on_probe: Callable[[Generation], None] | None
    ) -> "Request":
        """Return the request of one call of `generate`, inside a running event loop."""
        return cls(
            list(prompt_ids),
            len(prompt_ids),
            params,
            asyncio.get_running_loop().create_future(),
            on_probe if params.num_probe_tokens else None,
            StopMatcher(params.stop),
        )

    def finish_reason(
        self, eos_token_ids: Collection[int], pieces: TokenPieces, max_model_len: int
    ) -> FinishReason | None:
        """Return why the generation ends with its newest token, or None if it goes on. Ask once for each token."""
        token = self.tokens[-1]
        if token in eos_token_ids:
            return FinishReason.EOS
        if self.params.stop and self.stop.push(pieces[token]):
            return FinishReason.STOP
        if self.num_new >= self.params.max_tokens or len(self.tokens) >= max_model_len:
            return FinishReason.LENGTH
        return None

    def ends_with_next(self, max_model_len: int) -> bool:
        """Return whether the next token is the last one, whatever it is."""
        return self.num_new + 1 >= self.params.max_tokens or len(self.tokens) + 1 >= max_model_len

    @property
    def num_pending(self) -> int:
        """Tokens that the next forward pass has to read."""
        return len(self.tokens) - self.num_computed

    @property
    def num_new(self) -> int:
        """Tokens that were sampled so far."""
        return len(self.tokens) - self.prompt_length

    def generation(self, reason: FinishReason) -> Generation:
        """Return a copy of what was sampled so far."""
        return Generation(
            token_ids=self.tokens[self.prompt_length :],
            logprobs=list(self.logprobs),
            entropies=list(self.entropies),
            finish_reason=reason,
            top_logprobs=list(self.top_logprobs),
            num_cached_tokens=self.num_cached,
        )
