"""What the runtime keeps for one event loop."""

from collections.abc import Callable, Mapping, Sequence

from aepo_lightning.circuit_breaker import CircuitBreaker
from aepo_lightning.contracts.tool import ToolLimits, ToolResult, ToolSpec
from aepo_lightning.tools.runtime.admission import Desk
from aepo_lightning.tools.runtime.arguments import ArgumentReader
from aepo_lightning.tools.runtime.loop_watch import LoopWatch, StandStills
from aepo_lightning.tools.runtime.single_flight import SingleFlight
from aepo_lightning.tools.runtime.states import ChainStates


class LoopState:
    """Desks, shared calls, states of chains and the watch of one event loop. Make it inside the loop.

    Args:
        specs: Of the tools.
        limits_of: Returns the limits of a tool, none of them left open.
        readers: By tool, what reads the arguments of its calls.
        stand_stills: Of all loops of the runtime.
    """

    def __init__(
        self,
        specs: Sequence[ToolSpec],
        limits_of: Callable[[ToolSpec], ToolLimits],
        readers: Mapping[str, ArgumentReader],
        stand_stills: StandStills,
    ) -> None:
        breakers: dict[str, CircuitBreaker] = {}
        self.desks: dict[str, Desk] = {}
        deadlines_s: dict[str, float] = {}
        for spec in specs:
            limits = limits_of(spec)
            # Tools of one provider fail together.
            breaker = breakers.setdefault(spec.provider or spec.name, _breaker_of(limits))
            self.desks[spec.name] = Desk(limits, breaker)
            assert limits.deadline_s is not None, "the runtime has filled it in"
            deadlines_s[spec.name] = limits.deadline_s
        self.flights: SingleFlight[ToolResult] = SingleFlight()
        self.states = ChainStates(deadlines_s, readers)
        self.watch = LoopWatch(stand_stills=stand_stills)


def _breaker_of(limits: ToolLimits) -> CircuitBreaker:
    return CircuitBreaker(
        min_failures=limits.breaker_failures,
        reset_s=limits.breaker_reset_s,
        share=limits.breaker_share,
        window_s=limits.breaker_window_s,
    )
