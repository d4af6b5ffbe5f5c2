"""What happened to the rows of a question file on the way in."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """Counts of one file: `num_rows` equals `num_kept` plus everything that was dropped."""

    num_rows: int
    num_kept: int
    num_empty_answers: int = 0
    """Dropped because no answer was given."""
    num_duplicates: int = 0
    """Dropped because an earlier row asks exactly the same."""
    num_overlapping: int = 0
    """Dropped because the validation file asks exactly the same."""
    num_repaired: int = 0
    """Kept, after a backspace was turned back into the `\\b` of `\\boxed`."""
