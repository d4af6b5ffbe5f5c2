"""A world of four places and three exits each, in which quests are answered after a few searches.

A turn is an optional thought (`go`) and then a search (`<search>c1</search>` takes exit 1) or an answer. A search is
answered with the exit and the place that it leads to. Some exits of a place lead to the same one, so results that read
differently lead to one state. `found` is right at the quest's gold place, `unsure` pays a consolation everywhere.
"""

from dataclasses import dataclass, field
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.contracts.reward import RewardInput, RewardOutput
from aepo_lightning.contracts.tool import ToolCall, ToolContext, ToolResult
from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.tokenizers import build_word_tokenizer

NUM_EXITS = 3
GO = 0
FOUND, UNSURE = 1 + NUM_EXITS, 2 + NUM_EXITS
ACTIONS = (
    "go",
    *(f"<search>c{number}</search>" for number in range(NUM_EXITS)),
    "<answer>found</answer>",
    "<answer>unsure</answer>",
)
"""Tokens that the policy writes: one ends a turn, except `go`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quest:
    """What is asked in the world."""

    start: int
    gold: int
    consolation: float
    """What `unsure` pays. 0 makes rewards two-valued."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the policy conditions on. Many prefixes lead to one state."""

    quest: int
    place: int
    step: int = 0
    """Searches so far."""
    has_thought: bool = False
    """Whether `go` was written in this turn."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The rules.

    Raises:
        ConfigError: If places do not have three exits that exist, or a number is out of range.
    """

    exits: tuple[tuple[int, ...], ...] = ((1, 2, 1), (2, 3, 2), (0, 0, 3), (1, 0, 1))
    """For each place, where its exits lead."""
    num_steps: int = 2
    """Searches that are possible; then only an answer is."""
    quests: tuple[Quest, ...] = field(
        default_factory=lambda: (Quest(start=0, gold=2, consolation=0.4), Quest(start=3, gold=1, consolation=0.0))
    )

    def __post_init__(self) -> None:
        """Refuse a world that cannot be walked through."""
        places = range(len(self.exits))
        if any(len(exits) != NUM_EXITS or not set(exits) <= set(places) for exits in self.exits):
            raise ConfigError(f"`exits` must name {NUM_EXITS} places for each of {len(places)}, but got {self.exits}.")
        if self.num_steps < 1:
            raise ConfigError(
                f"`num_steps` must be at least 1, but got {self.num_steps}. Without a search none branch."
            )

    def legal_actions(self, state: State) -> list[int]:
        """Return the actions that a state allows."""
        thought = [] if state.has_thought else [GO]
        searches = list(range(1, 1 + NUM_EXITS)) if state.step < self.num_steps else []
        return [*thought, *searches, FOUND, UNSURE]

    def next_state(self, state: State, action: int) -> State | None:
        """Return where an action leads, None after an answer."""
        if action in (FOUND, UNSURE):
            return None
        if action == GO:
            return State(quest=state.quest, place=state.place, step=state.step, has_thought=True)
        return State(quest=state.quest, place=self.exits[state.place][action - 1], step=state.step + 1)

    def reward(self, state: State, action: int) -> float:
        """Return what an answer pays."""
        quest = self.quests[state.quest]
        if action == UNSURE:
            return quest.consolation
        return float(state.place == quest.gold)

    def result_text(self, state: State, action: int) -> str:
        """Return what a search is answered with."""
        return f"c{action - 1} e{self.exits[state.place][action - 1]}"

    def start(self, quest: int) -> State:
        """Return the first state of a quest."""
        return State(quest=quest, place=self.quests[quest].start)

    def question(self, quest: int, index: int) -> Question:
        """Return a quest as a question. The index only tells copies apart, whose random numbers differ."""
        return Question(
            question_id=f"q{quest}-{index}",
            messages=(Message(role="user", content=f"q{quest} e{self.quests[quest].start}"),),
            answers=("found",),
            metadata={"quest": quest},
        )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """One token for each word."""
        exits = (f"c{number}" for number in range(NUM_EXITS))
        places = (f"e{place}" for place in range(len(self.exits)))
        quests = (f"q{quest}" for quest in range(len(self.quests)))
        return build_word_tokenizer(("<result>", "</result>", *ACTIONS, *exits, *places, *quests))

    @cached_property
    def states(self) -> list[State]:
        """Every state that a quest can reach, each once, in a fixed order."""
        found: dict[State, None] = {}
        waiting = [self.start(quest) for quest in range(len(self.quests))]
        while waiting:
            state = waiting.pop(0)
            if state in found:
                continue
            found[state] = None
            following = (self.next_state(state, action) for action in self.legal_actions(state))
            waiting += [each for each in following if each is not None]
        return list(found)


@dataclass(frozen=True, slots=True)
class ExitSearch:
    """Runs searches: the place is where the chain's calls before have led."""

    world: World
    tool_names: tuple[str, ...] = ("search",)

    async def call(self, call: ToolCall, context: ToolContext) -> ToolResult:
        """Take an exit and say where it leads."""
        quest = context.question.metadata["quest"]
        state = walk(self.world, quest, tuple(earlier for earlier, _ in context.history))
        return ToolResult(text=self.world.result_text(state, _action(call)))


@dataclass(frozen=True, slots=True)
class QuestReward:
    """Pays for the answer at the place that was reached."""

    world: World
    is_immediate: bool = True

    async def __call__(self, sample: RewardInput) -> RewardOutput:
        """Return what the last word of the response is worth."""
        state = walk(self.world, sample.question.metadata["quest"], sample.tool_calls)
        reward = self.world.reward(state, ACTIONS.index(sample.response_text.split()[-1]))
        return RewardOutput(reward=reward, is_correct=reward == 1.0, is_well_formed=True)


def walk(world: World, quest: int, calls: tuple[ToolCall, ...]) -> State:
    """Return the state after some searches of a quest."""
    state = world.start(quest)
    for call in calls:
        following = world.next_state(state, _action(call))
        assert following is not None, "a search is no answer"
        state = following
    return state


def _action(call: ToolCall) -> int:
    return 1 + int(call.text[1:])
