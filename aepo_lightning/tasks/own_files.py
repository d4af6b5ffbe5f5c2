"""Questions in files of one's own, whatever their format: what is asked for, which rows are kept, and what is reported.

A format adds a reader: `jsonl.py` and `parquet.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from aepo_lightning.contracts.question import OnObjection, Question, Split
from aepo_lightning.errors import ConfigError
from aepo_lightning.tasks.paths import FilePaths, find_files
from aepo_lightning.tasks.repair import repair_question
from aepo_lightning.tasks.rows import Place, RowFields
from aepo_lightning.tasks.splits import OnConflict, QuestionSplits, Source, StoredQuestions, check_choices

NumberedRows = tuple[str, Sequence[tuple[int, dict[str, Any]]]]
"""What a row is called (`line`, `row`), and the rows with their numbers."""


@dataclass(frozen=True, slots=True)
class OwnFiles(StoredQuestions):
    """Questions of files: one field with the question, one with the answer or a list of accepted answers.

    Rows without an answer are dropped. From training, rows whose whole prompt came before are dropped as well, and
    those that validation asks. `reports` has the counts, `summary` says them in one line a file.

    Raises:
        ConfigError: If no file is named or a setting has no meaning.
        DataError: If a file is missing or cannot be read, a field is missing or of the wrong type, or no row is left.
    """

    path: FilePaths | None = None
    """The training files: one, a pattern (`data/*.jsonl`) or a list; without one the training split is empty. Relative
    paths start from the working directory if the file is there, else from `data_dir`."""
    _: KW_ONLY
    val_path: FilePaths | None = None
    """The validation files, in the same way; without one the validation split is empty."""
    data_dir: str | None = None
    """None takes the environment variable `AEPO_DATA_DIR`, else `shared/data` beside the checkout."""
    question_field: str = "question"
    """A text, or a list of messages with `role` and `content`. Dots reach into nested fields: `extra_info.question`."""
    answer_field: str = "answer"
    """A text, a number, a list of them, or an object that has them in `target`. Dots as above, also into each object of
    a list: `reward_model.ground_truth`, `answer.aliases`."""
    answer_pattern: str | None = None
    """Regular expression whose first group is the answer proper, such as `#### (.+)` for GSM8K. None takes all."""
    ability: str = ""
    """Kind of question, `qa` or `math`, for rewards that depend on it. Kept in the metadata."""
    system_prompt: str = ""
    """Sent before the question, in place of what the chat format says of the tools. Empty leaves that to the format."""
    fix_boxed: bool = True
    """Whether to repair prompts and answers in which the `\\b` of `\\boxed` or the `\\f` of `\\frac` became a control
    character."""
    on_conflict: OnConflict = "merge"
    """What happens to a prompt that comes again with other answers: `merge` accepts those of both rows, `error` refuses
    the files with both places."""
    on_bad_gold: OnObjection = "error"
    """What happens to answers that would not earn the full reward if the policy gave them: `error` refuses them with
    file and place, `drop` leaves them out, `keep` leaves them in."""
    seed: int = 0
    """Of the order of the training questions, which is drawn anew in every epoch."""

    def __post_init__(self) -> None:
        """Read the files, so that every fault shows at the start."""
        if self.path is None and self.val_path is None:
            raise ConfigError("`path` or `val_path` must name a file, but got None for both. Set one of them.")
        check_choices(self.on_conflict, self.on_bad_gold)
        fields = RowFields(
            question_field=self.question_field,
            answer_field=self.answer_field,
            answer_pattern=self.answer_pattern,
            ability=self.ability,
            system_prompt=self.system_prompt,
        )

        def read(path: Path, label: str, split: Split) -> Source:
            unit, rows = self._read(path)
            places = [Place(path=path, label=label, unit=unit, number=number) for number, _ in rows]
            questions = [fields.question(place, split, row) for place, (_, row) in zip(places, rows, strict=True)]
            return make_source(path, questions, [str(place) for place in places], self.fix_boxed)

        object.__setattr__(self, "_splits", QuestionSplits(*self._sources(read), self.seed))
        self._splits.clean(self.on_conflict)
        self._splits.refuse_nothing()

    def _sources(self, read: Callable[[Path, str, Split], Source]) -> tuple[list[Source], list[Source]]:
        train = read_all(read, self.path, self.data_dir, "train")
        return train, read_all(read, self.val_path, self.data_dir, "val")

    def _read(self, path: Path) -> NumberedRows:
        """Return the rows of a file; a format does it in its way."""
        raise NotImplementedError(f"`OwnFiles` cannot read {path} itself. Use `JsonlQuestions` or `ParquetQuestions`.")


def read_all(
    read: Callable[[Path, str, Split], Source], paths: FilePaths | None, data_dir: str | None, split: Split
) -> list[Source]:
    """Read the files of a split, each under a label of its own: its name without the ending, and a number if need be.

    Args:
        read: Reads one file under a label.
        paths: As they were given; None is no file.
        data_dir: See `find_files`.
        split: That of the files.
    """
    if paths is None:
        return []
    labels: dict[str, Path] = {}
    for path in find_files(paths, data_dir, split):
        label, number = path.stem, 1
        while label in labels:
            number += 1
            label = f"{path.stem}.{number}"
        labels[label] = path
    return [read(path, label, split) for label, path in labels.items()]


def make_source(path: Path, questions: Sequence[Question], places: Sequence[str], is_repaired: bool) -> Source:
    """Return the questions of a file, repaired if that is asked for."""
    fixed = [repair_question(question) for question in questions] if is_repaired else questions
    num_repaired = sum(new is not old for new, old in zip(fixed, questions, strict=True))
    return Source(name=str(path), questions=fixed, places=places, num_repaired=num_repaired)
