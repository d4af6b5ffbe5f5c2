"""In which order the chains of a group decide about branches where no timing may have a say: in rounds.

Chains run side by side and share one branch budget, so who decides first decides with more of it. In the order of their
arrival that depends on how long an engine took, and this may depend on the tokens that it drew: a chain whose first
token ends its turn may arrive earlier. The budget would then know something of the chain's own future. Here it cannot:
round t takes the decisions of all chains at their turn t, after those of every earlier turn, and begins when no chain
that runs can still come to turn t or before. Chains that decide in one round do so in an order of seeded numbers.

Round t is a function of what all chains held before their turn t, and of random numbers that belong to the decisions.
Nothing of it was drawn in turn t or later, by any chain, whenever the engine reported it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from aepo_lightning.contracts.engine import Engine, EntropyReporting
from aepo_lightning.errors import EngineError
from aepo_lightning.rollout.chain import Chain, TurnMeasurement
from aepo_lightning.rollout.settings import RolloutSettings


@dataclass(slots=True)
class DecisionRounds:
    """Decisions that wait for their round. A chain that waits goes on; only its branches start later."""

    order: Callable[[Chain, int], float]
    """A number for a chain and a turn: the smaller decides first within a round."""
    _next_turns: dict[tuple[int | str, ...], int] = field(default_factory=dict)
    """For each chain that runs, the first turn that it has not come to."""
    _waiting: list[tuple[Chain, TurnMeasurement]] = field(default_factory=list)

    def join(self, chain: Chain) -> None:
        """Note a chain that starts. It does not decide at the turn that it starts with."""
        self._next_turns[chain.seed_path] = chain.turn + 1

    def wait(self, chain: Chain, measurement: TurnMeasurement) -> None:
        """Note that a chain came to a turn after a tool result. A chain that has ended, a probe, may wait as well."""
        self._waiting.append((chain, measurement))
        if chain.seed_path in self._next_turns:
            self._next_turns[chain.seed_path] = measurement.turn + 1

    def leave(self, chain: Chain) -> None:
        """Note that a chain has ended."""
        del self._next_turns[chain.seed_path]

    def take(self) -> tuple[Chain, TurnMeasurement] | None:
        """Return the decision that is due, or None until further chains have come further."""
        if not self._waiting:
            return None
        due = min(self._waiting, key=lambda pair: (pair[1].turn, self.order(pair[0], pair[1].turn)))
        if any(turn <= due[1].turn for turn in self._next_turns.values()):
            return None
        self._waiting.remove(due)
        return due


def check_entropy_source(settings: RolloutSettings, engine: Engine) -> None:
    """Check that what decides about branches is what the settings say.

    Raises:
        EngineError: If decisions are taken on the exact entropy before the first token, and the engine reports an
            estimate. One from the largest log-probs and the sampled token's knows what was drawn.
    """
    source = engine.entropy_source if isinstance(engine, EntropyReporting) else "exact"
    if settings.branch_signal == "prefix" and source != "exact":
        raise EngineError(
            f"The engine's `entropy_source` must be 'exact' for `branch_signal=prefix`, but got {source!r}. Its log "
            "says why it fell back. Mend that, or branch on `after_tool`."
        )
