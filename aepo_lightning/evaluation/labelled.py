"""Labelled answers that a judge is tried on, and the file of what it made of them."""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aepo_lightning.atomic_files import write_json
from aepo_lightning.contracts.checker import AnswerChecker, Claim
from aepo_lightning.errors import DataError
from aepo_lightning.evaluation.calibration import Calibration, JudgedLabel
from aepo_lightning.evaluation.shares import missing_kind

_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledClaim:
    """An answer, and whether people called it correct."""

    claim: Claim
    is_correct: bool


def read_labelled(path: Path) -> list[LabelledClaim]:
    """Return the labelled answers of a JSONL file.

    Each line is an object with `question`, `golds` (a text or a list of texts), `answer` and `is_correct`, and, if
    wanted, `question_id` and `choices`. Without an id, equal questions are one question.

    Raises:
        DataError: If the file cannot be read or is empty, a line is not such an object, an id stands for two questions,
            or an answer has two labels.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} must be a JSONL file of labelled answers, but: {error}.") from None
    found = [_labelled(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(f"{path} must hold labelled answers, but is empty. Write one JSON object a line.")
    _check_ids(found, path)
    return found


def _labelled(line: str, place: str) -> LabelledClaim:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} must be a JSON object, but: {error}.") from None
    if not isinstance(row, dict):
        raise DataError(f"{place} must be a JSON object, but is {line!r:.80}.")
    golds = row.get("golds")
    golds = [golds] if isinstance(golds, str) else golds
    return LabelledClaim(
        claim=Claim(
            question=_text(row, "question", place),
            golds=_texts(golds, "golds", place),
            answer=_text(row, "answer", place),
            question_id=str(row.get("question_id", row["question"])),
            choices=_texts(row.get("choices", []), "choices", place),
        ),
        is_correct=_label(row, place),
    )


def _text(row: Mapping[str, Any], name: str, place: str) -> str:
    if not isinstance(value := row.get(name), str):
        raise DataError(f"`{name}` of {place} must be a text, but got {value!r:.80}. Write it as a string.")
    return value


def _texts(value: object, name: str, place: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise DataError(f"`{name}` of {place} must be a list of texts, but got {value!r:.80}. Write strings.")
    return tuple(value)


def _label(row: Mapping[str, Any], place: str) -> bool:
    if not isinstance(value := row.get("is_correct"), bool):
        raise DataError(f"`is_correct` of {place} must be true or false, but got {value!r:.80}.")
    return value


def _check_ids(found: Sequence[LabelledClaim], path: Path) -> None:
    questions: dict[str, str] = {}
    labels: dict[Claim, bool] = {}
    for each in found:
        name = each.claim.question_id
        if questions.setdefault(name, each.claim.question) != each.claim.question:
            raise DataError(
                f"`question_id` {name!r:.80} of {path} must stand for one question, but stands for two. Rename one."
            )
        if labels.setdefault(each.claim, each.is_correct) is not each.is_correct:
            raise DataError(
                f"The answer {each.claim.answer!r:.80} to question {name!r:.80} of {path} must have one label, but has "
                "both. Keep one."
            )


async def calibrate(
    judge: AnswerChecker, labelled: Sequence[LabelledClaim], identity: Mapping[str, Any]
) -> Calibration:
    """Have a judge look at labelled answers, all at once; it limits itself.

    Args:
        judge: Who is tried.
        labelled: Answers with labels.
        identity: Who that is, as plain values.
    """
    verdicts = await asyncio.gather(*(judge(each.claim) for each in labelled))
    pairs = [
        JudgedLabel(
            question_id=each.claim.question_id,
            is_correct=each.is_correct,
            judged=verdict.is_correct if verdict.is_scored else None,
        )
        for each, verdict in zip(labelled, verdicts, strict=True)
    ]
    kinds = Counter(missing_kind(verdict) for verdict in verdicts if not verdict.is_scored)
    return Calibration(judge=dict(identity), pairs=tuple(pairs), abstentions=dict(sorted(kinds.items())))


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write what a judge made of labelled answers as a JSON file, whole or not at all: figures and single verdicts."""
    pairs = calibration.pairs
    write_json(
        path,
        {
            "format": _FORMAT,
            "judge": dict(calibration.judge),
            "num_pairs": len(pairs),
            "num_questions": len({pair.question_id for pair in pairs}),
            "agreement": None if calibration.agreement is None else asdict(calibration.agreement),
            "kappa": None if calibration.kappa is None else asdict(calibration.kappa),
            "confusion": asdict(calibration.confusion),
            "abstentions": dict(calibration.abstentions),
            "pairs": [[pair.question_id, pair.is_correct, pair.judged] for pair in pairs],
        },
    )


def read_calibration(path: Path) -> Calibration:
    """Return what `write_calibration` wrote.

    Raises:
        DataError: If the file is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != _FORMAT:
            raise ValueError(f"its format is {found['format']}")
        pairs = [
            JudgedLabel(question_id=str(name), is_correct=bool(label), judged=None if judged is None else bool(judged))
            for name, label, judged in found["pairs"]
        ]
        return Calibration(judge=dict(found["judge"]), pairs=tuple(pairs), abstentions=dict(found["abstentions"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} must be a calibration that `aepo-eval judge-check` wrote, but: {error}. Write it again."
        ) from None
