"""A chain that goes on from where another one stood: after the same turns and results, or within a turn."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.generation import FinishReason, Generation, SamplingParams
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tree import RolloutTree, Segment
from aepo_lightning.rollout.chain import Chain
from aepo_lightning.rollout.record import SeedPath, first_tokens
from aepo_lightning.rollout.steps import RolloutParts


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunTurn:
    """The first tokens of a turn that is still being written. The three lists have one entry per token."""

    token_ids: list[int]
    logprobs: list[float]
    """Of the engine that sampled them; 0 for those that nobody sampled."""
    entropies: list[float]
    is_over: bool = False
    """Whether the last token ends the message, so that nothing is written behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """Where a chain goes on, and the branch path that its random numbers derive from."""

    seed_path: SeedPath
    segments: Sequence[Segment] = ()
    """Turns and results behind the prompt, in order. The last one is a result."""
    begun: BegunTurn | None = None
    """What the next turn begins with. It may be the whole of it, up to a stop string or the end of the message."""

    def parts(self, parts: RolloutParts) -> RolloutParts:
        """Return parts that grow one chain without branches, and give its next turn this beginning."""
        alone = parts.for_evaluation(1)
        if self.begun is None:
            return alone
        return replace(alone, engine=TurnFinisher(alone.engine, self.begun, alone.chat_format.decode))

    def lay(self, tree: RolloutTree, chain: Chain) -> None:
        """Put a chain that stands at the prompt behind the turns and results."""
        for each in self.segments:
            numbers = {"logprobs": list(each.logprobs), "entropies": list(each.entropies)}
            answers = {"tool_call": each.tool_call, "tool_result": each.tool_result}
            segment = tree.add(chain.segment_id, each.source, list(each.token_ids), **numbers, **answers)
            chain.segment_id = segment.segment_id
            chain.token_ids.extend(segment.token_ids)
            if segment.source is SegmentSource.POLICY:
                chain.turn += 1
            if segment.tool_call is not None and segment.tool_result is not None:
                chain.num_tool_calls += 1
                chain.tool_calls += (segment.tool_call,)
                chain.tool_results += (segment.tool_result,)


@dataclass(slots=True)
class TurnFinisher:
    """An engine whose first generation is given its beginning and writes the rest; all others are ordinary.

    Tokens are drawn by their seed and place, so the rest of a turn is what it was when the turn was written in one.
    """

    engine: Engine
    begun: BegunTurn | None
    decode: Callable[[Sequence[int]], str]
    max_model_len: int = field(init=False)

    def __post_init__(self) -> None:
        """Take over the context."""
        self.max_model_len = self.engine.max_model_len

    async def generate(
        self, prompt_ids: list[int], params: SamplingParams, on_probe: Callable[[Generation], None] | None = None
    ) -> Generation:
        """Continue `prompt_ids`, as `Engine.generate` does."""
        begun, self.begun = self.begun, None
        if begun is None:
            return await self.engine.generate(prompt_ids, params, on_probe)
        whole = await self._finish(prompt_ids, params, begun)
        if on_probe is not None:
            on_probe(first_tokens(whole, params.num_probe_tokens))
        return whole

    async def _finish(self, prompt_ids: list[int], params: SamplingParams, begun: BegunTurn) -> Generation:
        """Write the rest; token by token where a stop string may have begun, because an engine sees only its own."""
        whole = Generation(
            token_ids=begun.token_ids,
            logprobs=begun.logprobs,
            entropies=begun.entropies,
            finish_reason=FinishReason.EOS if begun.is_over else FinishReason.LENGTH,
        )
        while not begun.is_over:
            text = self.decode(whole.token_ids)
            if any(stop in text for stop in params.stop):
                return replace(whole, finish_reason=FinishReason.STOP)
            room = params.max_tokens - len(whole.token_ids)
            if room < 1:
                return whole
            is_open = any(text.endswith(stop[:size]) for stop in params.stop for size in range(1, len(stop)))
            asked = replace(params, max_tokens=1 if is_open else room, num_probe_tokens=0, num_top_logprobs=0)
            more = await self.engine.generate([*prompt_ids, *whole.token_ids], asked)
            whole = Generation(
                token_ids=whole.token_ids + more.token_ids,
                logprobs=whole.logprobs + more.logprobs,
                entropies=whole.entropies + more.entropies,
                finish_reason=more.finish_reason,
                num_cached_tokens=more.num_cached_tokens,
            )
            if not is_open or more.finish_reason is not FinishReason.LENGTH:
                return whole
        return whole

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights of the engine."""
        self.engine.load_weights(weights, version)

    def sleep(self) -> None:
        """Let the engine sleep."""
        self.engine.sleep()

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()
