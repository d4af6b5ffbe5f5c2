"""One generation on its way through the embedded engine."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from aepo_lightning.engines.stopping import StopMatcher
from aepo_lightning.types import FinishReason, Generation, SamplingParams


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
