"""A softmax policy that is a table of logits: one row for each state of the world, one column for each action."""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from typing_extensions import override

from aepo_lightning.contracts.batch import PackedTokens
from aepo_lightning.policy.network import PolicyNetwork, TokenScores
from benchmarks.support.laboratory.world import ACTIONS, State, World

_NEVER = -1.0e9
"""Logit of what a state does not allow: its probability is exactly 0."""


class PrefixReader:
    """Reads states off tokens, one after the other."""

    def __init__(self, world: World) -> None:
        """Look up the words."""
        self._ids: dict[str, int] = world.tokenizer.get_vocab()
        self._places = {self._ids[f"e{place}"]: place for place in range(len(world.exits))}
        self._quests = {self._ids[f"q{quest}"]: quest for quest in range(len(world.quests))}
        self._actions = {self._ids[word]: action for action, word in enumerate(ACTIONS)}
        self._numbers = {state: number for number, state in enumerate(world.states)}
        self._known: dict[tuple[int, ...], tuple[list[int], list[int]]] = {}
        self._last: dict[tuple[int, ...], int] = {}

    def token(self, action: int) -> int:
        """Return the token of an action."""
        return self._ids[ACTIONS[action]]

    def state(self, prefix: tuple[int, ...]) -> int:
        """Return the number of the state after a prompt and what follows it."""
        if prefix not in self._last:
            self._last[prefix] = self.read(prefix)[0][-1]
        return self._last[prefix]

    def read(self, tokens: tuple[int, ...]) -> tuple[list[int], list[int]]:
        """Return for each token the number of the state after it, and the action that it is (0 where it is none)."""
        if tokens not in self._known:
            self._known[tokens] = self._read(tokens)
        return self._known[tokens]

    def _read(self, tokens: tuple[int, ...]) -> tuple[list[int], list[int]]:
        quest, place, step, has_thought = self._quests[tokens[0]], 0, 0, False
        states = []
        for token in tokens:
            if token in self._places:
                place = self._places[token]
            elif token == self._ids["<result>"]:
                step, has_thought = step + 1, False
            elif token == self._ids["go"]:
                has_thought = True
            state = State(quest=quest, place=place, step=step, has_thought=has_thought)
            states.append(self._numbers.get(state, 0))  # between call and result no state is asked for
        return states, [self._actions.get(token, 0) for token in tokens]


class TabularPolicy(PolicyNetwork):
    """What `PolicyLoss` scores tokens with, and all there is to train: `logits`, in float64."""

    def __init__(self, world: World, scale: float = 1.0, seed: int = 0) -> None:
        """Draw logits from a normal distribution.

        Args:
            world: Where the policy acts.
            scale: Standard deviation of the logits: 0 is uniform, a large one nearly deterministic.
            seed: Of the draw; policies of one seed differ in their scale alone.
        """
        nn.Module.__init__(self)
        self.world = world
        self.reader = PrefixReader(world)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(len(world.states), len(ACTIONS), generator=generator, dtype=torch.float64)
        self.logits = nn.Parameter(scale * drawn)
        allowed = torch.zeros(drawn.shape, dtype=torch.bool)
        for number, state in enumerate(world.states):
            allowed[number, world.legal_actions(state)] = True
        self._allowed = allowed
        self.scored = torch.zeros(())
        """Log-probs of the last call, by which a loss can be differentiated token by token."""

    def log_table(self) -> Float[Tensor, "states actions"]:
        """Return log-probs of every action in every state."""
        return torch.log_softmax(torch.where(self._allowed, self.logits, _NEVER), -1)

    def entropy_table(self) -> Float[Tensor, " states"]:
        """Return the entropy of every state in nats."""
        logs = self.log_table()
        return -(logs.exp() * logs).sum(-1)

    @override
    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"],
        response_mask: Bool[Tensor, "batch response"],
        temperature: float = 1.0,
        entropy: Literal["none", "detached", "grad"] = "detached",
        packed: PackedTokens | None = None,
    ) -> TokenScores:
        """Return log-probs and entropies of `input_ids[:, 1:]` where the response mask is True.

        Args:
            input_ids: Tokens, padded on the right.
            response_mask: Which predictions to score.
            temperature: 1.
            entropy: `grad` lets gradients flow through entropies.
            packed: None.
        """
        assert temperature == 1.0, "the laboratory samples at temperature 1"
        assert packed is None, "the laboratory pads"
        rows = [self.reader.read(tuple(row)) for row in input_ids.tolist()]
        states = torch.tensor([found[:-1] for found, _ in rows])
        actions = torch.tensor([found[1:] for _, found in rows])
        logs = self.log_table()
        self.scored = torch.where(response_mask, logs[states, actions], 0.0)
        entropies = -(logs.exp() * logs).sum(-1)
        if entropy != "grad":
            entropies = entropies.detach()
        return TokenScores(logprobs=self.scored, entropies=torch.where(response_mask, entropies[states], 0.0))


def at_entropy(world: World, share: float, seed: int = 0) -> TabularPolicy:
    """Return the policy of a seed whose decisions have a given entropy.

    Args:
        world: Where it acts.
        share: Mean entropy of the states over that of uniform choices, in (0, 1].
        seed: Of the logits.
    """
    uniform = float(TabularPolicy(world, 0.0, seed).entropy_table().detach().mean())
    low, high = 0.0, 1.0
    while float(TabularPolicy(world, high, seed).entropy_table().detach().mean()) > share * uniform:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = math.fsum((low, high)) / 2
        entropy = float(TabularPolicy(world, middle, seed).entropy_table().detach().mean())
        low, high = (middle, high) if entropy > share * uniform else (low, middle)
    return TabularPolicy(world, high, seed)
