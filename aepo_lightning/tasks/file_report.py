"""What happened to the rows of a question file on the way in."""

from dataclasses import dataclass, fields

_DROPPED = {
    "num_empty_answers": "without an answer",
    "num_duplicates": "asked before",
    "num_merged": "asked before with other answers, which the first one took over",
    "num_overlapping": "also asked in validation",
    "num_unpayable": "with answers that the reward does not pay",
    "num_long": "with a prompt that is too long",
}
_KEPT = {
    "num_repaired": "repaired (\\b and \\f of LaTeX commands)",
    "num_trimmed": "kept without some of their answers",
    "num_unpayable_kept": "kept with answers that the reward does not pay",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """Counts of one file, or of all files of a split: `num_rows` equals `num_kept` plus everything that was dropped."""

    name: str = ""
    """The file."""
    num_rows: int = 0
    num_kept: int = 0
    num_empty_answers: int = 0
    """Dropped because no answer was given."""
    num_duplicates: int = 0
    """Dropped because an earlier row has the same prompt and all of its answers."""
    num_merged: int = 0
    """Dropped because an earlier row has the same prompt, which took over the other answers."""
    num_overlapping: int = 0
    """Dropped because the validation file asks exactly the same."""
    num_unpayable: int = 0
    """Dropped because the reward pays none of the answers in full."""
    num_long: int = 0
    """Dropped because the prompt has more tokens than `max_prompt_tokens`."""
    num_repaired: int = 0
    """Kept, after a backspace was turned back into the `\\b` of `\\boxed` or the like."""
    num_trimmed: int = 0
    """Kept, without answers that the reward does not pay."""

    num_unpayable_kept: int = 0
    """Kept with answers that the reward does not pay, because that was asked for."""

    @property
    def num_dropped(self) -> int:
        """Rows that are not asked."""
        return self.num_rows - self.num_kept

    def __add__(self, other: "FileReport") -> "FileReport":
        """Return the counts of both together."""
        names = [each.name for each in fields(self) if each.name != "name"]
        return FileReport(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def __str__(self) -> str:
        """Return one line: rows, kept, dropped by reason."""
        dropped = ", ".join(f"{getattr(self, name)} {text}" for name, text in _DROPPED.items() if getattr(self, name))
        extra = ", ".join(f"{getattr(self, name)} {text}" for name, text in _KEPT.items() if getattr(self, name))
        line = f"{self.name}: {self.num_rows} rows, {self.num_kept} kept"
        line += f", {self.num_dropped} dropped: {dropped}" if self.num_dropped else ", none dropped"
        return f"{line}; {extra}." if extra else f"{line}."


def total(reports: list[FileReport]) -> FileReport:
    """Return the counts of several files together."""
    return sum(reports, FileReport())
