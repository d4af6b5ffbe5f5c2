"""A cave to be explored: at each chamber the policy may answer with what it holds, or go on and risk it.

A question names the entrance (`find s4`). Searching it returns the first chamber: a stone, which is also its name, and
a sign (`s9 k2`). Searching stone and passage together (`s9 p1`) returns the next chamber if the passage is the one that
the sign stands for, else `pit`, from where nobody brings anything. The answer is the stone found last: the one of the
last chamber is worth 1, those before it less. The policy writes a line of words before each call and before the answer;
which of the words it takes has no consequence. What a sign stands for is the same in all questions, so it can be
learned, but only by those who go on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from aepo_lightning.contracts.question import (
    Demonstration,
    DemonstrationTurn,
    Message,
    Question,
    SegmentSource,
    Split,
)
from aepo_lightning.errors import ConfigError
from aepo_lightning.tasks.frame_words import FRAME_WORDS
from aepo_lightning.tasks.index import check_index

PIT = "pit"
"""What a search returns behind a wrong passage."""
FOG = "fog"
"""Stands in place of the sign in chambers that have one passage, `p0`."""
DUST = "dust"
"""A word beside the stone in an accepted answer: the more of it, the less the stone alone is worth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chamber:
    """A chamber: its stone, its sign (None in fog) and the passage that leads on. All are numbers here."""

    stone: int
    sign: int | None
    passage: int

    @property
    def text(self) -> str:
        """The result of the search that finds it."""
        return f"s{self.stone} {FOG if self.sign is None else f'k{self.sign}'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaveTask:
    """Questions about caves of chambers in a row, and demonstrations that do not know what the signs stand for.

    Every question is a pure function of the seed, the split and the index. Training, validation and demonstrations draw
    from three streams that never meet.

    Raises:
        ConfigError: If a setting has no meaning.
    """

    num_chambers: int = 3
    """The first is found by searching the entrance; each of the others takes the right passage."""
    num_passages: int = 3
    num_signs: int = 4
    """Sign `k` stands for passage `k` modulo `num_passages`."""
    num_stones: int = 12
    dust: Sequence[int] = ()
    """For the first chambers, the words of dust beside the stone in the accepted answer: with n of them the stone is
    worth an F1 of 2 / (2 + n). Stones of other chambers before the last are worth nothing."""
    fog_share: float = 0.0
    """Share of the chambers, in [0, 1], that have fog in place of a sign: their one passage is always `p0`."""
    num_words: int = 8
    """Words of a line of thought."""
    num_synonyms: int = 6
    """Words that each word of a line is drawn from, each as likely."""
    is_plain_at_signs: bool = False
    """Whether a line after a sign is always the same, so that only lines in fog are drawn."""
    boldness: float = 0.5
    """Probability in [0, 1] that a demonstration goes on from a chamber before the last."""
    knowledge: float = 0.0
    """Probability in [0, 1] that a demonstration which goes on takes the passage of the sign; else any passage, each as
    likely."""
    num_val_questions: int = 256
    seed: int = 0
    """Of the training questions and the demonstrations."""
    val_seed: int = 0
    """Of the validation questions: runs with different `seed` are measured on the same ones."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        bounds = {"num_chambers": 1, "num_passages": 1, "num_signs": 1, "num_words": 1, "num_synonyms": 1}
        for name, least in (bounds | {"num_val_questions": 0, "num_stones": self.num_chambers + 1}).items():
            if getattr(self, name) < least:
                raise ConfigError(f"`{name}` must be at least {least}, but got {getattr(self, name)}. Raise it.")
        for name in ("fog_share", "boldness", "knowledge"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"`{name}` must be in [0, 1], but got {getattr(self, name)}. It is a probability.")
        if len(self.dust) >= self.num_chambers or min(self.dust, default=1) < 1:
            raise ConfigError(
                f"`dust` must hold at most {self.num_chambers - 1} numbers, one for each chamber before the last, each "
                f"at least 1, but got {list(self.dust)}. The stone of the last chamber is worth 1."
            )

    @property
    def words(self) -> tuple[str, ...]:
        """Every word of prompts, documents and demonstrations, for a word tokenizer."""
        numbered = {"s": self.num_stones, "k": self.num_signs, "p": self.num_passages, "w": self.num_synonyms}
        return (*FRAME_WORDS, PIT, FOG, *(f"{kind}{i}" for kind, many in numbered.items() for i in range(many)))

    def num_questions(self, split: Split) -> int | None:
        """Return None for training, which has no end, and `num_val_questions` for validation."""
        return self.num_val_questions if split == "val" else None

    def question(self, split: Split, index: int) -> Question:
        """Return question `index` of a split.

        Raises:
            IndexError: If the index is negative or beyond the end of the validation split.
        """
        check_index(split, index, self.num_questions(split))
        random = Random(f"cave/{split}/{self.val_seed if split == 'val' else self.seed}/{index}")
        return self._question(*self._draw(random), f"cave-{split}-{index}")

    def demonstration(self, index: int) -> Demonstration:
        """Return demonstration `index`, which ends in a chamber or in a pit.

        Raises:
            IndexError: If the index is negative.
        """
        check_index("train", index, None)
        random = Random(f"cave/demonstration/{self.seed}/{index}")
        entrance, chambers = self._draw(random)
        question = self._question(entrance, chambers, f"cave-demonstration-{index}")
        turns: list[DemonstrationTurn] = []
        query = held = f"s{entrance}"
        sign: int | None = 0
        for depth in range(self.num_chambers):
            found = question.documents[query]
            turns.append(_spoken(f"{self._line(random, held, sign)} <search> {query} </search>"))
            turns.append(DemonstrationTurn(source=SegmentSource.TOOL, text=found))
            here = chambers[depth]
            held, sign = found.split()[0], None if found == PIT else here.sign
            if found == PIT or depth + 1 == self.num_chambers or random.random() >= self.boldness:
                break
            query = f"{held} p{self._passage(random, here)}"
        turns.append(_spoken(f"{self._line(random, held, sign)} <answer> \\boxed{{ {held} }} </answer>"))
        return Demonstration(question=question, turns=tuple(turns))

    def _passage(self, random: Random, chamber: _Chamber) -> int:
        if chamber.sign is None or random.random() < self.knowledge:
            return chamber.passage
        return random.randrange(self.num_passages)

    def _line(self, random: Random, held: str, sign: int | None) -> str:
        """Write a line of thought: what was found last, then words, after a sign or in fog."""
        is_plain = self.is_plain_at_signs and sign is not None
        drawn = (
            position % self.num_synonyms if is_plain else random.randrange(self.num_synonyms)
            for position in range(self.num_words)
        )
        return " ".join(["<think>", held, *(f"w{word}" for word in drawn), "</think>"])

    def _draw(self, random: Random) -> tuple[int, list[_Chamber]]:
        """Draw the entrance and the chambers behind it."""
        entrance, *stones = random.sample(range(self.num_stones), self.num_chambers + 1)
        chambers = []
        for stone in stones:
            sign = None if random.random() < self.fog_share else random.randrange(self.num_signs)
            chambers.append(_Chamber(stone=stone, sign=sign, passage=0 if sign is None else sign % self.num_passages))
        return entrance, chambers

    def _question(self, entrance: int, chambers: list[_Chamber], question_id: str) -> Question:
        """Write a cave as a question."""
        *before, last = chambers
        partial = zip(before, self.dust, strict=False)
        return Question(
            question_id=question_id,
            messages=(Message(role="user", content=f"find s{entrance}"),),
            answers=(
                f"s{last.stone}",
                *(" ".join([f"s{chamber.stone}", *[DUST] * amount]) for chamber, amount in partial),
            ),
            documents=self._documents(entrance, chambers),
            metadata={"ability": "cave"},
        )

    def _documents(self, entrance: int, chambers: list[_Chamber]) -> Mapping[str, str]:
        """Write down what lies behind the entrance and behind each passage."""
        documents = {f"s{entrance}": chambers[0].text}
        for here, after in pairwise(chambers):
            for passage in range(self.num_passages):
                documents[f"s{here.stone} p{passage}"] = after.text if passage == here.passage else PIT
        return documents


def _spoken(text: str) -> DemonstrationTurn:
    return DemonstrationTurn(source=SegmentSource.POLICY, text=text)
