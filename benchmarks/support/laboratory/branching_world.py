"""A world in which every rollout can be enumerated: a policy of a few letters, and the library's sampler on it.

A turn is a letter, which the policy draws, and the end of the turn. A capital calls the tool, whose answer follows; a
small letter ends the trajectory and is paid. Everything else is the library's: `GroupRollout` asks for the letters, and
whatever it draws comes from a `Tape` that is run through all its outcomes.
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from aepo_lightning.contracts.branching import BranchContext
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.generation import FinishReason, Generation, SamplingParams
from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.contracts.reward import RewardInput, RewardOutput
from aepo_lightning.contracts.tool import ToolCall, ToolContext, ToolResult
from aepo_lightning.contracts.tree import Leaf, RolloutTree, SegmentSource
from aepo_lightning.event_loop import run_in_event_loop
from aepo_lightning.rollout import GroupRollout, RolloutParts

END = "."


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One thing that the policy may write in a turn."""

    probability: float
    reward: float = 0.0
    """Of a small letter."""
    result: str = ""
    """What the tool answers to a capital."""
    end_entropy: float = 0.0
    """Of the turn's second token, in nats: what a measure over the whole turn learns about what was drawn."""
    delay: int = 0
    """Turns of the event loop until the engine reports the first token: how a draw may show in the time it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A policy by state. A state is what the trajectory holds so far, letters and results, without ends of turns."""

    states: Mapping[str, Mapping[str, Letter]]

    def entropy(self, state: str) -> float:
        """Return the exact entropy of the next letter, in nats."""
        return -math.fsum(each.probability * math.log(each.probability) for each in self.states[state].values())

    def trajectories(self, state: str = "") -> Iterator[tuple[float, list[tuple[str, str]]]]:
        """Yield every way to go on from a state: its probability and its (state, letter) pairs."""
        for name, letter in self.states[state].items():
            if not letter.result:
                yield letter.probability, [(state, name)]
                continue
            for probability, rest in self.trajectories(state + name + letter.result):
                yield letter.probability * probability, [(state, name), *rest]

    def reward(self, path: Sequence[tuple[str, str]]) -> float:
        """Return what a trajectory is worth."""
        state, name = path[-1]
        return self.states[state][name].reward

    def score(self, path: Sequence[tuple[str, str]]) -> dict[tuple[str, str], float]:
        """Return the derivatives of a trajectory's log-probability by the logits, one for each state and letter."""
        found: dict[tuple[str, str], float] = {}
        for state, name in path:
            for other, letter in self.states[state].items():
                found[state, other] = float(other == name) - letter.probability
        return found

    def path(self, tree: RolloutTree, leaf: Leaf) -> list[tuple[str, str]]:
        """Return what the policy drew on the way to a leaf."""
        state, path = "", []
        for segment in tree.path(leaf.segment_id)[1:]:
            text = "".join(map(chr, segment.token_ids)).removesuffix(END)
            if segment.source is SegmentSource.POLICY:
                path.append((state, text))
            state += text
        return path


class Tape:
    """Random choices that are run through all their outcomes, depth first."""

    def __init__(self) -> None:
        """Start with the first outcome of whatever is asked."""
        self._made: list[tuple[int, list[float]]] = []
        self._place = 0

    @property
    def probability(self) -> float:
        """Of the outcomes since the last `rewind`."""
        return math.prod(probabilities[outcome] for outcome, probabilities in self._made)

    def choose(self, probabilities: Sequence[float]) -> int:
        """Return the outcome of the next choice in this run; never one of probability 0."""
        if self._place == len(self._made):
            first = next(index for index, each in enumerate(probabilities) if each > 0)
            self._made.append((first, list(probabilities)))
        outcome, known = self._made[self._place]
        assert known == list(probabilities), "the same choices lead to the same question"
        self._place += 1
        return outcome

    def rewind(self) -> bool:
        """Go on to the next run; return whether there is one."""
        self._place = 0
        while self._made:
            outcome, known = self._made.pop()
            following = next((index for index in range(outcome + 1, len(known)) if known[index] > 0), None)
            if following is not None:
                self._made.append((following, known))
                return True
        return False


@dataclass(eq=False)
class WorldEngine:
    """Draws letters from a tape, and reports the first of each turn as late as the letter says."""

    world: World
    tape: Tape
    max_model_len: int = 1000
    load_weights: Callable[..., None] = field(default=lambda *_: None)
    sleep: Callable[[], None] = field(default=lambda: None)
    close: Callable[[], None] = field(default=lambda: None)

    async def generate(
        self, prompt_ids: list[int], params: SamplingParams, on_probe: Callable[[Generation], None] | None = None
    ) -> Generation:
        """Return one turn."""
        state = "".join(map(chr, prompt_ids[1:])).replace(END, "")
        letters = self.world.states[state]
        name = list(letters)[self.tape.choose([each.probability for each in letters.values()])]
        letter = letters[name]
        for _ in range(letter.delay):
            await asyncio.sleep(0)
        entropies = [self.world.entropy(state), letter.end_entropy]
        tokens, logprobs = [ord(name), ord(END)], [math.log(letter.probability), 0.0]
        reason = FinishReason.STOP if letter.result else FinishReason.EOS
        if on_probe is not None:
            seen = slice(params.num_probe_tokens)
            on_probe(_generation(tokens[seen], logprobs[seen], entropies[seen], FinishReason.LENGTH))
        await asyncio.sleep(0)
        return _generation(tokens, logprobs, entropies, reason)


def _generation(tokens: list[int], logprobs: list[float], entropies: list[float], reason: FinishReason) -> Generation:
    return Generation(token_ids=tokens, logprobs=logprobs, entropies=entropies, finish_reason=reason)


@dataclass(frozen=True)
class WorldFormat:
    """The chat format of letters: a token is a character."""

    stop: tuple[str, ...] = (END,)
    vocab_size: int = 128

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Write every prompt as one question mark."""
        del messages
        return [ord("?")]

    def parse_calls(self, turn_text: str, finish_reason: FinishReason) -> tuple[ToolCall, ...]:
        """Return the call that a capital makes."""
        return (ToolCall(tool="look", text=turn_text),) if finish_reason is FinishReason.STOP else ()

    def encode_results(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the characters of results."""
        return [list(map(ord, text)) for text in texts]

    def encode_text(self, text: str) -> list[int]:
        """Return the characters of a text."""
        return list(map(ord, text))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the characters of tokens, ends of turns left out."""
        return "".join(map(chr, token_ids)).replace(END, "")


@dataclass(frozen=True)
class WorldTool:
    """Answers a call as the state says in which it was made."""

    world: World
    tool_names: tuple[str, ...] = ("look",)

    async def call(self, call: ToolCall, context: ToolContext) -> ToolResult:
        """Return the result of the letter."""
        before = "".join(made.text + answer.text for made, answer in context.history)
        return ToolResult(text=self.world.states[before][call.text].result)


@dataclass(frozen=True)
class WorldReward:
    """Pays what the last letter is worth."""

    world: World

    async def __call__(self, sample: RewardInput) -> RewardOutput:
        """Score a trajectory."""
        state, name = sample.response_text[:-1], sample.response_text[-1]
        reward = self.world.states[state][name].reward
        return RewardOutput(reward=reward, is_correct=reward >= 1, is_well_formed=True)


@dataclass(frozen=True, kw_only=True)
class DrawnBranching:
    """Opens a branch with probability `high` where the entropy is above that of the chain's start, else with `low`."""

    tape: Tape
    high: float
    low: float

    def num_branches(self, context: BranchContext) -> int:
        """Return 0 or 1, as the tape says."""
        probability = self.high if context.entropy > context.initial_entropy else self.low
        return self.tape.choose([1 - probability, probability])


def enumerate_trees(world: World, parts: Callable[[Engine, Tape], RolloutParts]) -> Iterator[tuple[float, RolloutTree]]:
    """Yield every tree that a sampler may grow in a world, with its probability.

    Args:
        world: Says what may be drawn.
        parts: Makes a rollout around an engine and a tape, for policies that draw.
    """
    tape = Tape()
    made = parts(WorldEngine(world=world, tape=tape), tape)
    question = Question(question_id="q", messages=(Message(role="user", content="?"),), answers=("",))
    while True:
        tree = run_in_event_loop(GroupRollout(made, question, 0).grow())
        yield tape.probability, tree
        if not tape.rewind():
            return
