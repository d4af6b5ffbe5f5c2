"""Questions about an invented world as a task, and demonstrations of how they are answered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Literal

from aepo_lightning.contracts.question import Demonstration, Question, Split
from aepo_lightning.contracts.tool import Tool
from aepo_lightning.errors import ConfigError
from aepo_lightning.tasks.deep_search.comparisons import draw_comparison, draw_count
from aepo_lightning.tasks.deep_search.demonstrations import Imperfection, ScriptedAgent
from aepo_lightning.tasks.deep_search.facts import Facts
from aepo_lightning.tasks.deep_search.questions import NUM_HOPS, Level, Solved, draw_hops
from aepo_lightning.tasks.deep_search.relations import Depth
from aepo_lightning.tasks.deep_search.world import DeepSearchWorld
from aepo_lightning.tasks.index import check_index
from aepo_lightning.tasks.prompts import with_system

_MOST_TRIES = 2000
_MOST_REPEATS = 500
_ALL_LEVELS = tuple(level.value for level in Level)
Stream = Literal["train", "val", "demonstration"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSearchTask:
    """Questions about an invented world that its pages answer, and demonstrations that call the tools of the run.

    Training and validation ask about different things of the world, which nothing relates. A training question is a
    pure function of the world, the seed and the index; the validation questions depend on the world only, and no two
    of them are the same.

    Raises:
        ConfigError: If a setting has no meaning, or the world is too small for the questions.
    """

    world: DeepSearchWorld = field(default_factory=DeepSearchWorld)
    search: Tool | None = None
    """Called by demonstrations, so that they show what the policy will see. None gives questions only."""
    browse: Tool | None = None
    """The same; needed unless `depth` is snippet."""
    levels: Sequence[str] = _ALL_LEVELS
    """Of training questions and demonstrations: one_hop, two_hops, three_hops, four_hops, comparison, count. Each is as
    likely; one that is named twice is twice as likely."""
    val_levels: Sequence[str] | None = None
    """Of validation questions, in turn. None is `levels`."""
    depth: str = Depth.LINKED.value
    """Where the facts are told that are asked for: snippet (a search shows them), page (a record may have to be
    opened), linked (and pages that only a record leads to)."""
    call_style: str = "tags"
    """How demonstrations write calls: tags (`<search> .. </search>`) or hermes (JSON in `<tool_call>` tags)."""
    uses_python: bool = False
    """Whether demonstrations call the python tool to add up, in counts. The least number of calls is without that."""
    imperfection: Imperfection = field(default_factory=Imperfection)
    """How often demonstrations go wrong."""
    num_flawless_demonstrations: int = 0
    """The first so many demonstrations are without fault whatever `imperfection` says."""
    system_prompt: str = ""
    """Sent before the question if it is not empty."""
    num_val_questions: int = 256
    seed: int = 0
    """Of the training questions and the demonstrations."""
    _facts: dict[Split, Facts] = field(init=False, repr=False, compare=False, default_factory=dict)
    _val: list[Solved] = field(init=False, repr=False, compare=False, default_factory=list)

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        for name, levels in (("levels", self.levels), ("val_levels", self.val_levels or self.levels)):
            if isinstance(levels, str) or not levels or not set(levels) <= set(_ALL_LEVELS):
                raise ConfigError(f"`{name}` must be some of {', '.join(_ALL_LEVELS)}, but got {levels!r}. Change it.")
        if self.depth not in list(Depth):
            raise ConfigError(f"`depth` must be one of {', '.join(Depth)}, but got {self.depth!r}. Use one of them.")
        for name in ("num_val_questions", "num_flawless_demonstrations"):
            if getattr(self, name) < 0:
                raise ConfigError(f"`{name}` must be at least 0, but got {getattr(self, name)}. Raise it.")
        self._agent()

    def num_questions(self, split: Split) -> int | None:
        """Return None for training, which has no end, and `num_val_questions` for validation."""
        return self.num_val_questions if split == "val" else None

    def question(self, split: Split, index: int) -> Question:
        """Return question `index` of a split.

        Raises:
            IndexError: If the index is negative or beyond the end of the validation split.
            ConfigError: If the world is too small for so many different questions.
        """
        return self._worded(self.solved(split, index), split, index)

    def solved(self, split: Split, index: int) -> Solved:
        """Return question `index` of a split with its answer, plan and proof.

        Raises:
            IndexError: If the index is negative or beyond the end of the validation split.
            ConfigError: If the world is too small for so many different questions.
        """
        check_index(split, index, self.num_questions(split))
        if split == "train":
            return self._drawn("train", index)
        while len(self._val) <= index:
            self._val.append(self._another())
        return self._val[index]

    def demonstration(self, index: int) -> Demonstration:
        """Return demonstration `index`, about the things that training asks about.

        Raises:
            IndexError: If the index is negative.
            ConfigError: If there is no tool to call.
        """
        check_index("train", index, None)
        solved = self._drawn("demonstration", index)
        question = self._worded(solved, "demonstration", index)
        faults = Random(f"deep_search/faults/{self.world.seed}/{self.seed}/{index}")
        imperfection = Imperfection() if index < self.num_flawless_demonstrations else self.imperfection
        turns = self._agent().answer(question, solved, faults, imperfection)
        return Demonstration(question=question, turns=turns)

    def _drawn(self, stream: Stream, index: int) -> Solved:
        random = Random(f"deep_search/{stream}/{self.world.seed}/{self.seed}/{index}")
        return self._draw(random, "train", Level(random.choice(list(self.levels))))

    def _another(self) -> Solved:
        """Draw a validation question that is not there yet."""
        known = {solved.text for solved in self._val}
        levels = list(self.val_levels or self.levels)
        index = len(self._val)
        random = Random(f"deep_search/val/{self.world.seed}/{index}")
        for _ in range(_MOST_REPEATS):
            solved = self._draw(random, "val", Level(levels[index % len(levels)]))
            if solved.text not in known:
                return solved
        raise ConfigError(
            f"`num_val_questions` must be at most what the world has, but got {self.num_val_questions} and "
            f"found {index}. Lower it, or raise `world.num_things`."
        )

    def _draw(self, random: Random, split: Split, level: Level) -> Solved:
        """Draw a question of a level."""
        facts = self._facts.get(split)
        if facts is None:
            facts = self._facts[split] = Facts(self.world, split, Depth(self.depth))
        others: dict[Level, Callable[[Facts, Random], Solved | None]] = {
            Level.COMPARISON: draw_comparison,
            Level.COUNT: draw_count,
        }
        draw = partial(draw_hops, level=level) if level in NUM_HOPS else others[level]
        for _ in range(_MOST_TRIES):
            if (solved := draw(facts, random)) is not None:
                return solved
        raise ConfigError(
            f"`num_things` must leave room for questions of the level {level}, but got {self.world.num_things}. "
            "Raise it."
        )

    def _agent(self) -> ScriptedAgent:
        tools = {"search": self.search, "browse": self.browse}
        given = {name: tool for name, tool in tools.items() if tool is not None}
        return ScriptedAgent(tools=given, call_style=self.call_style, uses_python=self.uses_python)

    def _worded(self, solved: Solved, stream: Stream, index: int) -> Question:
        """Write a solved question as the policy is asked it."""
        return Question(
            question_id=f"deep-search-{stream}-{index}",
            messages=with_system(self.system_prompt, solved.text),
            answers=(solved.answer,),
            metadata={
                "ability": "deep_search",
                "level": str(solved.level),
                "least_calls": len(solved.plan),
                "proof": list(solved.proof),
            },
        )
