"""What generates tokens: the Protocol of engines, and what an engine may offer beyond it."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from aepo_lightning.contracts.generation import Generation, SamplingParams


@runtime_checkable
class Engine(Protocol):
    """Generates tokens: token ids in, token ids out."""

    @property
    def max_model_len(self) -> int:
        """Longest sequence (prompt and response together) in tokens."""
        ...

    async def generate(
        self, prompt_ids: list[int], params: SamplingParams, on_probe: Callable[[Generation], None] | None = None
    ) -> Generation:
        """Continue `prompt_ids`. Many calls may run at once; cancelling one stops its generation.

        Args:
            prompt_ids: The tokens to continue.
            params: How to sample.
            on_probe: Called exactly once, as soon as `params.num_probe_tokens` tokens exist or the generation ended
                before that, with what exists by then. This is how a branch starts while its trunk still generates.

        Raises:
            EngineError: If the engine failed or the prompt does not fit the context.
        """
        ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights (Hugging Face names) and forget every cached prefix."""
        ...

    def sleep(self) -> None:
        """Free what only generation needs, until the next `load_weights`. Nothing may be generated in between."""
        ...

    def close(self) -> None:
        """Free what the engine holds. Calling it twice is allowed."""
        ...


@runtime_checkable
class RepeatableEngine(Protocol):
    """An engine that gives the same numbers in every bit when it does the same work again, from its first request on.

    What it gives for one request still depends, in the last bits, on which others run beside it.
    """

    @property
    def is_repeatable(self) -> bool:
        """Whether that holds where it computes."""
        ...


@runtime_checkable
class TypedEngine(Protocol):
    """An engine that knows in which precision it keeps the weights that it generates with."""

    @property
    def dtype(self) -> str:
        """As torch names it, such as `bfloat16`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowRankUpdate:
    """What an adapter adds to one weight: `scale * up @ down`; `ops.low_rank.merge_low_rank` adds it."""

    name: str
    """Hugging Face name of the weight."""
    down: Float[Tensor, "rank inner"]
    up: Float[Tensor, "hidden rank"]
    scale: float


@runtime_checkable
class AdapterEngine(Protocol):
    """An engine that keeps the weights below an adapter, so that only the adapter has to be published."""

    @property
    def base(self) -> str | None:
        """Name of the base that the engine still has, empty without one, None if it never keeps one."""
        ...

    def load_base(self, weights: Iterable[tuple[str, Tensor]], adapted: Collection[str], base: str) -> None:
        """Keep all weights (Hugging Face names), without adapter. Nothing may be generated before `load_adapter`.

        Args:
            weights: All of the model's.
            adapted: Names of those that adapters will be added to.
            base: A name for them. `Engine.load_weights` makes the engine forget it.
        """
        ...

    def load_adapter(self, updates: Iterable[LowRankUpdate], version: int) -> None:
        """Generate with the base and this adapter, one update for each adapted weight; forget every cached prefix."""
        ...


@runtime_checkable
class EntropyReporting(Protocol):
    """An engine that knows how good its entropies are and has another estimate to fall back to."""

    @property
    def entropy_source(self) -> str:
        """`exact`, or the name of the estimate that `Generation.entropies` holds, such as `top_20`."""
        ...

    def fall_back_to_top_k(self, reason: str) -> None:
        """Report an estimate from the largest log-probs from now on, with a warning that gives the reason."""
        ...
