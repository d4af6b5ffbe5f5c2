"""What a judge replied, read strictly: one JSON object with the fields that were asked for, or no verdict at all."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from aepo_lightning.rewards.judge.failures import AbstentionKind, JudgeFailure
from aepo_lightning.rewards.judge.template import JudgeTemplate, Ruling

_MAX_REASON_CHARS = 2000
_THOUGHTS = re.compile(r"<think>(?:(?!</?think>).)*</think>", re.DOTALL)
"""What a server without a parser for them leaves before a reply."""
_CODE_BLOCK = re.compile(r"```(?:json)?\s*\n((?:(?!```).)*)\n\s*```", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back from an endpoint."""

    content: str
    """Empty if there is none."""
    is_cut_off: bool = False
    """Whether the limit of tokens ended it."""
    is_withheld: bool = False
    """Whether the model or a filter declined to reply."""
    prompt_tokens: int | None = None
    """None if the server does not count."""
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict that was read."""

    ruling: Ruling
    reason: str


def read_completion(body: bytes, content_type: str) -> Reply:
    """Return the reply in the body of a chat completion.

    Args:
        body: As it was sent, whole.
        content_type: What the server says that it is, for the message.

    Raises:
        JudgeFailure: If it is no chat completion with one choice.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        kind = re.sub(r"[^\w/+.-]", "", content_type.partition(";")[0])[:40] or "no content type"
        raise _malformed(f"answered with something that is not JSON ({kind})") from None
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        num = len(choices) if isinstance(choices, list) else "no"
        raise _malformed(f"answered with {num} choices instead of one")
    message, finish = choices[0].get("message"), choices[0].get("finish_reason")
    if not isinstance(message, dict):
        raise _malformed("answered without a message")
    content, usage = message.get("content"), answer.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Reply(
        content=content if isinstance(content, str) else "",
        is_cut_off=finish == "length",
        is_withheld=finish == "content_filter" or bool(message.get("refusal")),
        prompt_tokens=_count(counts.get("prompt_tokens")),
        completion_tokens=_count(counts.get("completion_tokens")),
    )


def read_judgement(reply: Reply, template: JudgeTemplate) -> Judgement:
    """Return the verdict in a reply.

    Its content must be one JSON object with exactly the fields of the template. Allowed round it are white space, one
    block of thoughts (`<think>...</think>`) before it, and a code block that holds the object alone.

    Args:
        reply: What the judge wrote.
        template: The fields and the words that it was asked for.

    Raises:
        JudgeFailure: If it is anything else, or was cut off or withheld.
    """
    if reply.is_cut_off:
        raise JudgeFailure(AbstentionKind.CUT_OFF, "reached the limit of tokens before the end of its reply")
    if reply.is_withheld:
        raise JudgeFailure(AbstentionKind.WITHHELD, "declined to reply")
    if not reply.content.strip():
        raise _unreadable("an empty reply", "")
    return _judgement(reply.content, template)


def _judgement(content: str, template: JudgeTemplate) -> Judgement:
    text = content.strip()
    if thoughts := _THOUGHTS.match(text):
        text = text[thoughts.end() :].strip()
    if block := _CODE_BLOCK.fullmatch(text):
        text = block.group(1)
    try:
        found = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        problem = "a field twice" if isinstance(error, _TwiceError) else "text that is not one JSON object"
        raise _unreadable(problem, content) from None
    if not isinstance(found, dict):
        raise _unreadable(f"JSON that is no object but {type(found).__name__}", content)
    if found.keys() != template.fields.keys():
        raise _unreadable(f"the fields {_listed(found)} instead of {_listed(template.fields)}", content)
    for name in template.fields:
        if not _fits(found[name], is_percent=name in template.percent_fields):
            raise _unreadable(f"a field `{name}` of the wrong kind", content)
    word = found[template.verdict_field]
    if word not in template.words:
        raise _unreadable(f"{word!r:.40} instead of one of {_listed(template.words)}", content)
    reason = found[template.reason_field].strip()[:_MAX_REASON_CHARS]
    return Judgement(ruling=Ruling(template.words[word]), reason=reason)


class _TwiceError(ValueError):
    """An object has a field twice, so that it may hold two verdicts."""


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _TwiceError
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _fits(value: object, is_percent: bool) -> bool:
    if is_percent:
        return type(value) is int and 0 <= value <= 100
    return isinstance(value, str)


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _listed(names: Sequence[str] | Any) -> str:
    return ", ".join(f"{name:.40}" for name in [*names][:8]) or "none"


def _malformed(text: str) -> JudgeFailure:
    return JudgeFailure(AbstentionKind.MALFORMED, text, can_pass=True)


def _unreadable(problem: str, content: str) -> JudgeFailure:
    quoted = f": {' '.join(content.split())!r:.160}" if content else ""
    return JudgeFailure(AbstentionKind.UNREADABLE, f"gave {problem}{quoted}")
