"""Checking, after each publication, that the engine generates with the weights that the trainer has.

Stale or half-loaded weights raise no error anywhere: the run goes on and learns from the wrong policy. So the engine
samples a few tokens after a fixed prompt, and the trainer scores the same tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import torch

from aepo_lightning.contracts.batch import TrajectoryBatch
from aepo_lightning.contracts.engine import Engine, EntropyReporting
from aepo_lightning.contracts.generation import Generation, SamplingParams, WeightsStamp
from aepo_lightning.distributed.collectives import all_reduce
from aepo_lightning.errors import ConfigError, EngineError
from aepo_lightning.event_loop import run_in_event_loop
from aepo_lightning.policy.network import TokenScores

_VISIBLE_CHANGE = 1e-3
"""Mean change of the trainer's log-probs (nats) that an engine in bfloat16 must show in at least one bit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Probe:
    generation: Generation
    logprobs: torch.Tensor


@dataclass(slots=True, kw_only=True)
class PublicationCheck:
    """Compares engine and trainer on a fixed probe prompt.

    Two things stop a run: log-probs that differ by more than the bound, and an engine whose answer did not change in
    any bit although the trainer's log-probs of it did.

    Raises:
        ConfigError: If a bound or a number is not positive.
    """

    max_logprob_gap: float = 0.05
    """Largest mean absolute difference in nats. Rounding gives 1e-6 in float32, and 1e-3 to 3e-2 between two
    implementations in bfloat16."""
    max_entropy_gap: float = 0.05
    """The same for the entropies of the tokens. An engine that has another estimate falls back to it."""
    num_tokens: int = 8
    max_prompt_tokens: int = 256
    """Longer probe prompts are cut there."""
    metrics: dict[str, float] = field(default_factory=dict, init=False)
    """What the last check measured, over all ranks."""
    _last: _Probe | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        for name in ("max_logprob_gap", "max_entropy_gap", "num_tokens", "max_prompt_tokens"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"`{name}` must be positive, but got {getattr(self, name)}.")

    def __call__(
        self,
        engine: Engine,
        score: Callable[[TrajectoryBatch], TokenScores],
        prompt_ids: Sequence[int],
        temperature: float,
        version: int,
    ) -> WeightsStamp:
        """Check a publication. Collective: every rank calls it after the same publication.

        Args:
            engine: Has just been given the weights.
            score: Scores tokens under the trainer's weights.
            prompt_ids: The probe prompt, the same at every call.
            temperature: Of the rollouts.
            version: Optimiser steps that the weights have seen.

        Returns:
            A name for these weights.

        Raises:
            EngineError: On every rank, if the engine of any rank has other weights than the trainer.
        """
        prompt, generation = self.sample(engine, prompt_ids, temperature)
        scores = score(_batch(prompt, generation, temperature))
        own = slice(len(prompt) - 1, None)
        logprobs, entropies = scores.logprobs[0, own].float().cpu(), scores.entropies[0, own].float().cpu()
        self._compare(engine, _Probe(generation=generation, logprobs=logprobs), entropies)
        digest = blake2b(repr(generation.token_ids).encode() + logprobs.numpy().tobytes(), digest_size=8)
        return WeightsStamp(version=version, digest=digest.hexdigest())

    def sample(self, engine: Engine, prompt_ids: Sequence[int], temperature: float) -> tuple[list[int], Generation]:
        """Have the engine continue the probe prompt; return what of the prompt it got, and its answer."""
        prompt = list(prompt_ids)[: min(self.max_prompt_tokens, engine.max_model_len - self.num_tokens)]
        params = SamplingParams(max_tokens=self.num_tokens, temperature=temperature, seed=0)
        return prompt, run_in_event_loop(engine.generate(prompt, params))

    def _compare(self, engine: Engine, probe: _Probe, entropies: torch.Tensor) -> None:
        generation = probe.generation
        logprob_gap = float((probe.logprobs - torch.tensor(generation.logprobs)).abs().mean())
        entropy_gap = float((entropies - torch.tensor(generation.entropies)).abs().mean())
        if isinstance(engine, EntropyReporting) and engine.entropy_source != "exact":
            entropy_gap = 0.0  # an estimate is expected to differ
        stale_by = _unseen_change(self._last, probe)
        self._last = probe
        logprob_gap, entropy_gap, stale_by = all_reduce([logprob_gap, entropy_gap, stale_by], "max")
        self.metrics = {"logprob_gap": logprob_gap, "entropy_gap": entropy_gap}
        if not logprob_gap <= self.max_logprob_gap:
            raise EngineError(
                f"After a publication the engine's log-probs must be within {self.max_logprob_gap} nats of the "
                f"trainer's, but the mean difference over a probe is {logprob_gap:.3g}. {_ADVICE}"
            )
        if stale_by > _VISIBLE_CHANGE:
            raise EngineError(
                "After a publication the engine must generate with the new weights, but its answer to the probe is the "
                f"old one bit by bit, while the trainer's log-probs of it moved by {stale_by:.3g} nats. {_ADVICE}"
            )
        if not entropy_gap <= self.max_entropy_gap:
            self._distrust(engine, entropy_gap)

    def _distrust(self, engine: Engine, gap: float) -> None:
        reason = (
            f"the engine's entropies must be within {self.max_entropy_gap} nats of the trainer's, but the mean "
            f"difference over a probe is {gap:.3g}"
        )
        if not isinstance(engine, EntropyReporting):
            raise EngineError(f"After a publication {reason}. {_ADVICE}")
        engine.fall_back_to_top_k(reason)


def _unseen_change(last: _Probe | None, probe: _Probe) -> float:
    """Return how far the trainer's log-probs moved while the engine's answer stayed the same in every bit, else 0."""
    if last is None or last.generation.token_ids != probe.generation.token_ids:
        return 0.0
    if last.generation.logprobs != probe.generation.logprobs:
        return 0.0
    return float((last.logprobs - probe.logprobs).abs().mean())


def _batch(prompt: list[int], generation: Generation, temperature: float) -> TrajectoryBatch:
    tokens = [*prompt, *generation.token_ids]
    mask = torch.zeros(1, len(tokens) - 1, dtype=torch.bool)
    mask[0, len(prompt) - 1 :] = True
    zeros = torch.zeros(1, len(tokens) - 1)
    return TrajectoryBatch(
        input_ids=torch.tensor([tokens]),
        lengths=torch.tensor([len(tokens)]),
        response_mask=mask,
        sampler_logprobs=zeros,
        sampler_entropies=zeros,
        group_index=torch.tensor([0]),
        rewards=torch.zeros(1),
        sequence_advantages=torch.zeros(1),
        temperature=temperature,
    )


_ADVICE = (
    "Check that trainer and engine have the same architecture, precision and sampling temperature, and that the update "
    "reaches every engine; a bound that fits coarser precision is `publication_check.max_logprob_gap`."
)
