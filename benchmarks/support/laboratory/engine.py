"""The table of a policy as an engine: exact log-probs and entropies, and tokens that depend on seed and place alone."""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from aepo_lightning.contracts.generation import FinishReason, Generation, SamplingParams
from aepo_lightning.errors import EngineError
from aepo_lightning.rollout.record import first_tokens
from aepo_lightning.rollout.seeds import derive_uniform
from benchmarks.support.laboratory.policy import TabularPolicy
from benchmarks.support.laboratory.world import FOUND, GO, UNSURE


@dataclass(frozen=True, slots=True)
class _Choice:
    """The distribution of one state."""

    actions: list[int]
    logprobs: list[float]
    bounds: list[float]
    """Upper ends of the probabilities, one after the other."""
    entropy: float
    top_logprobs: list[float]

    def draw(self, uniform: float) -> int:
        return min(bisect_right(self.bounds, uniform), len(self.actions) - 1)


class TabularEngine:
    """Samples from a `TabularPolicy` as it was when the engine was made."""

    max_model_len = 1 << 10

    def __init__(self, policy: TabularPolicy) -> None:
        """Write down every distribution."""
        self._reader = policy.reader
        with torch.no_grad():
            logs, entropies = policy.log_table().tolist(), policy.entropy_table().tolist()
        world = policy.world
        self._choices = [
            _choice(world.legal_actions(state), row, entropy)
            for state, row, entropy in zip(world.states, logs, entropies, strict=True)
        ]

    async def generate(
        self, prompt_ids: list[int], params: SamplingParams, on_probe: Callable[[Generation], None] | None = None
    ) -> Generation:
        """Write a turn.

        Raises:
            EngineError: If anything but plain sampling at temperature 1 is asked for.
        """
        if params.temperature != 1.0 or params.top_p != 1.0 or params.top_k:
            raise EngineError(f"`params` must be plain sampling at temperature 1, but got {params}.")
        prefix, action = tuple(prompt_ids), GO
        drawn: list[tuple[int, _Choice, int]] = []
        while action == GO:
            choice = self._choices[self._reader.state(prefix)]
            place = choice.draw(derive_uniform(params.seed, len(prefix)))
            action = choice.actions[place]
            drawn.append((self._reader.token(action), choice, place))
            prefix += (drawn[-1][0],)
        generation = Generation(
            token_ids=[token for token, _, _ in drawn],
            logprobs=[choice.logprobs[place] for _, choice, place in drawn],
            entropies=[choice.entropy for _, choice, _ in drawn],
            finish_reason=FinishReason.EOS if action in (FOUND, UNSURE) else FinishReason.STOP,
            top_logprobs=[choice.top_logprobs[: params.num_top_logprobs] for _, choice, _ in drawn]
            if params.num_top_logprobs
            else [],
        )
        if on_probe is not None:
            on_probe(first_tokens(generation, params.num_probe_tokens))
        return generation

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """There are none: an engine is made for each policy."""

    def sleep(self) -> None:
        """Nothing to free."""

    def close(self) -> None:
        """Nothing to free."""


def _choice(actions: list[int], logs: list[float], entropy: float) -> _Choice:
    own = [logs[action] for action in actions]
    bounds = list(accumulate(torch.tensor(own, dtype=torch.float64).exp().tolist()))
    return _Choice(actions, own, bounds, entropy, sorted(own, reverse=True))
