"""Trail following: the smallest task that needs many tool calls, with a closed vocabulary of about thirty words.

A question names a place and a rule (`find e3 c1`). Searching a place returns its exits; the rule says which exit to
take. After `num_steps` steps the place reached is the answer. Every question has a world of its own, so nothing can be
learnt by heart: the policy has to search, read, choose and search again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from aepo_lightning.contracts.question import (
    ClosedVocabulary,
    Demonstration,
    DemonstrationTurn,
    Message,
    Question,
    SegmentSource,
    Split,
    Task,
)
from aepo_lightning.errors import ConfigError
from aepo_lightning.tasks.frame_words import FRAME_WORDS
from aepo_lightning.tasks.index import check_index


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trail:
    """One world, a start in it and the exit that the rule names. Places and exits are numbers here."""

    exits: tuple[tuple[int, ...], ...]
    """For each place, where its exits lead."""
    start: int
    rule: int

    def follow(self, num_steps: int) -> int:
        """Return the place reached by taking the exit of the rule at every step."""
        place = self.start
        for _ in range(num_steps):
            place = self.exits[place][self.rule]
        return place


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailTask:
    """Questions about trails through small random worlds, and demonstrations of tunable quality.

    Every question is a pure function of the seed, the split and the index. Training, validation and demonstrations
    draw from three streams that never meet.

    Raises:
        ConfigError: If a setting has no meaning, or if exits are shuffled without labels to tell them apart.
    """

    num_places: int = 16
    num_exits: int = 3
    num_steps: int = 4
    """Searches that the right trajectory needs. Solving by chance gets rarer with each."""
    demonstration_quality: float = 0.7
    """Probability in [0, 1] of following the rule at a step of a demonstration; else any exit, each as likely."""
    num_flawless_demonstrations: int = 0
    """The first so many demonstrations follow the rule throughout. A policy made from nothing picks the rule up from
    them; the imperfect ones after them set where it starts."""
    is_labelled: bool = False
    """Whether each exit is written after its rule word (`c0 e1 c1 e5`). Without, exits stand in a fixed order."""
    shuffle_exits: bool = False
    """Whether labelled exits are written in random order, so that the policy must match the label."""
    num_val_questions: int = 256
    seed: int = 0
    """Of the training questions and the demonstrations."""
    val_seed: int = 0
    """Of the validation questions: runs with different `seed` are measured on the same ones."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        bounds = {
            "num_places": 2,
            "num_exits": 1,
            "num_steps": 1,
            "num_val_questions": 0,
            "num_flawless_demonstrations": 0,
        }
        for name, least in bounds.items():
            if getattr(self, name) < least:
                raise ConfigError(f"`{name}` must be at least {least}, but got {getattr(self, name)}. Raise it.")
        if not 0 <= self.demonstration_quality <= 1:
            raise ConfigError(
                f"`demonstration_quality` must be in [0, 1], but got {self.demonstration_quality}. It is a probability."
            )
        if self.shuffle_exits and not self.is_labelled:
            raise ConfigError("`shuffle_exits` must be False without labels, but got True. Set `is_labelled=True`.")

    @property
    def words(self) -> tuple[str, ...]:
        """Every word of prompts, documents and demonstrations, for a word tokenizer."""
        places = tuple(f"e{place}" for place in range(self.num_places))
        rules = tuple(f"c{rule}" for rule in range(self.num_exits))
        return (*FRAME_WORDS, "go", *places, *rules)

    def num_questions(self, split: Split) -> int | None:
        """Return None for training, which has no end, and `num_val_questions` for validation."""
        return self.num_val_questions if split == "val" else None

    def question(self, split: Split, index: int) -> Question:
        """Return question `index` of a split.

        Raises:
            IndexError: If the index is negative or beyond the end of the validation split.
        """
        check_index(split, index, self.num_questions(split))
        random = Random(f"trail/{split}/{self.val_seed if split == 'val' else self.seed}/{index}")
        return self._question(self._draw(random), random, f"trail-{split}-{index}")

    def demonstration(self, index: int) -> Demonstration:
        """Return demonstration `index`, which ends at the place it reached, right or wrong.

        Raises:
            IndexError: If the index is negative.
        """
        check_index("train", index, None)
        random = Random(f"trail/demonstration/{self.seed}/{index}")
        trail = self._draw(random)
        question = self._question(trail, random, f"trail-demonstration-{index}")
        quality = 1.0 if index < self.num_flawless_demonstrations else self.demonstration_quality
        turns: list[DemonstrationTurn] = []
        place, opening = trail.start, "<think> go </think> "
        for _ in range(self.num_steps):
            call = f"{opening}<search> e{place} </search>"
            turns.append(DemonstrationTurn(source=SegmentSource.POLICY, text=call))
            turns.append(DemonstrationTurn(source=SegmentSource.TOOL, text=question.documents[f"e{place}"]))
            follows = random.random() < quality
            place, opening = trail.exits[place][trail.rule if follows else random.randrange(self.num_exits)], ""
        answer = f"<answer> \\boxed{{ e{place} }} </answer>"
        turns.append(DemonstrationTurn(source=SegmentSource.POLICY, text=answer))
        return Demonstration(question=question, turns=tuple(turns))

    def _draw(self, random: Random) -> _Trail:
        """Draw a world, a start and a rule."""
        exits = random.choices(range(self.num_places), k=self.num_places * self.num_exits)
        return _Trail(
            exits=tuple(zip(*[iter(exits)] * self.num_exits, strict=True)),
            start=random.randrange(self.num_places),
            rule=random.randrange(self.num_exits),
        )

    def _question(self, trail: _Trail, random: Random, question_id: str) -> Question:
        """Write a trail as a question."""
        start, rule = f"e{trail.start}", f"c{trail.rule}"
        return Question(
            question_id=question_id,
            messages=(Message(role="user", content=f"find {start} {rule}"),),
            answers=(f"e{trail.follow(self.num_steps)}",),
            documents=self._documents(trail, random),
            metadata={"ability": "trail", "start": start, "rule": rule},
        )

    def _documents(self, trail: _Trail, random: Random) -> Mapping[str, str]:
        """Write down the exits of each place, as the search tool returns them."""
        if not self.is_labelled:
            return {f"e{place}": " ".join([f"e{exit_}" for exit_ in exits]) for place, exits in enumerate(trail.exits)}
        documents = {}
        for place, exits in enumerate(trail.exits):
            labelled = [f"c{rule} e{exit_}" for rule, exit_ in enumerate(exits)]
            if self.shuffle_exits:
                random.shuffle(labelled)
            documents[f"e{place}"] = " ".join(labelled)
        return documents


def vocabulary(task: Task) -> list[str]:
    """Return the words of a task, for a configuration file that builds a word tokenizer for it.

    Raises:
        ConfigError: If the task has no closed vocabulary.
    """
    if not isinstance(task, ClosedVocabulary):
        raise ConfigError(
            f"`model` must have a tokenizer for any text to go with {type(task).__name__}, but got one that is made of "
            "the words of a task. Write model=hf model.name_or_path=FOLDER_OR_HUB_NAME, or model=tiny_qwen3_bytes."
        )
    return list(task.words)
