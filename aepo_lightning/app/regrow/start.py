"""From a node of a saved tree, and what is to stand there instead, to where a chain goes on."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from aepo_lightning.app.node import Node
from aepo_lightning.contracts.question import Question, SegmentSource
from aepo_lightning.contracts.tool import ToolStatus
from aepo_lightning.contracts.tree import Segment
from aepo_lightning.errors import ConfigError
from aepo_lightning.rollout import Continuation, RolloutParts
from aepo_lightning.rollout.continuation import BegunTurn


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a chain goes on, and what the saved trajectory is compared from."""

    question: Question
    continuation: Continuation
    what: str
    """What is done at the node, for people."""
    first_shown: int
    """Place on the path of the first segment in which old and new may differ."""
    first_written: int
    """Place on the path of the first segment that the policy writes."""


def find_start(
    node: Node, question: Question, edit: str | None, parts: RolloutParts, end_ids: Collection[int] = ()
) -> Start:
    """Return where a chain goes on.

    After a tool result or the prompt, which an edit replaces; or within a turn, at its beginning or before the token
    that was named, where an edit is put into the policy's mouth.

    Args:
        node: From which the chain goes on.
        question: That of the tree.
        edit: A text. None changes nothing.
        parts: With the chat format, and with the limits that the edit must keep to.
        end_ids: Tokens that end a message.

    Raises:
        ConfigError: If the edit is empty or no text in Unicode, leaves no room, or writes on after the end of a turn;
            if the prompt would not be written as it was.
    """
    if edit is not None and not edit.strip():
        raise ConfigError("`--edit` must be a text, but got an empty one. Leave it out to change nothing.")
    if edit is not None and any("\ud800" <= each <= "\udfff" for each in edit):
        raise ConfigError(f"`--edit` must be a text in UTF-8, but got {edit!r}.")
    source = node.segment.source
    if source is SegmentSource.PROMPT:
        start = _after_prompt(node, question, edit)
    elif source is SegmentSource.TOOL:
        start = _after_result(node, question, edit, parts)
    else:
        start = _within_turn(node, question, edit, parts, end_ids)
    _check_room(node, start, edit, parts)
    return start


def _after_prompt(node: Node, question: Question, edit: str | None) -> Start:
    what = "the whole trajectory" if edit is None else "another question in the prompt"
    if edit is not None:
        *others, last = question.messages
        question = replace(question, messages=(*others, replace(last, content=edit)))
    shown = 1 if edit is None else 0
    start = Continuation(seed_path=node.leaf.seed_path)
    return Start(question=question, continuation=start, what=what, first_shown=shown, first_written=1)


def _after_result(node: Node, question: Question, edit: str | None, parts: RolloutParts) -> Start:
    """Go on after all results of the turn, of which the edit replaces one."""
    path, end = list(node.path), node.place
    while end < len(path) and path[end].source is SegmentSource.TOOL:
        end += 1
    tool = node.segment.tool_call.tool if node.segment.tool_call is not None else ""
    what, shown = f"after the result of {tool!r}", end
    if edit is not None:
        begin = node.place
        while path[begin - 1].source is SegmentSource.TOOL:
            begin -= 1
        path[begin:end] = _edited(path[begin:end], node.place - begin, edit, parts)
        what, shown = f"another result of {tool!r}", node.place
    start = Continuation(seed_path=node.leaf.seed_path, segments=path[1:end])
    return Start(question=question, continuation=start, what=what, first_shown=shown, first_written=end)


def _edited(results: Sequence[Segment], place: int, edit: str, parts: RolloutParts) -> list[Segment]:
    """Return the results of a turn, one of them with another text, as the chat format writes them together."""
    answers = [each.tool_result for each in results]
    old = answers[place]
    assert old is not None, "a segment of a tool holds a result"
    answers[place] = replace(old, text=edit, status=ToolStatus.OK, is_truncated=False)
    pieces = parts.chat_format.encode_results([answer.text for answer in answers if answer is not None])
    return [
        replace(each, token_ids=piece, tool_result=answer)
        for each, piece, answer in zip(results, pieces, answers, strict=True)
    ]


def _within_turn(
    node: Node, question: Question, edit: str | None, parts: RolloutParts, end_ids: Collection[int]
) -> Start:
    turn, number = node.segment, node.token or 0
    written = [] if edit is None else parts.chat_format.encode_text(edit)
    begun = BegunTurn(
        token_ids=turn.token_ids[:number] + written,
        logprobs=turn.logprobs[:number] + [0.0] * len(written),
        entropies=turn.entropies[:number] + [0.0] * len(written),
        is_over=bool(written) and written[-1] in end_ids,
    )
    if edit is not None:
        _refuse_after_stop(begun.token_ids, parts, end_ids)
    index = sum(each.source is SegmentSource.POLICY for each in node.path[: node.place + 1])
    where = f"turn {index}" + (f" after {number} of its {len(turn.token_ids)} tokens" if number else "")
    start = Continuation(
        seed_path=node.leaf.seed_path,
        segments=node.path[1 : node.place],
        begun=begun if begun.token_ids else None,
    )
    return Start(
        question=question,
        continuation=start,
        what=f"{where}, again" if edit is None else f"{where}, where the policy has written the edit",
        first_shown=node.place,
        first_written=node.place,
    )


def _refuse_after_stop(token_ids: Sequence[int], parts: RolloutParts, end_ids: Collection[int]) -> None:
    if any(token in end_ids for token in token_ids[:-1]):
        raise ConfigError(
            "`--edit` must end where the turn does, but goes on after the end of the message. Cut it there."
        )
    decode, stops = parts.chat_format.decode, (*parts.chat_format.stop, *parts.settings.stop)
    for stop in stops:
        if stop in decode(token_ids[:-1]):
            raise ConfigError(
                f"`--edit` must end where the turn does, but goes on after {stop!r}, at which a tool is called. Cut it "
                "there; the result is a node of its own."
            )


def _check_room(node: Node, start: Start, edit: str | None, parts: RolloutParts) -> None:
    """Refuse an edit after which no token can be sampled, and a prompt that is written in another way than it was."""
    prompt = parts.chat_format.encode_prompt(start.question.messages)
    saved, context = node.path[0].token_ids, parts.engine.max_model_len
    is_edited = edit is not None and node.place == 0
    if not is_edited and prompt[:context] != saved:
        raise ConfigError(
            f"The prompt must be written as it was, in {len(saved)} tokens, but the tokenizer and chat format that are "
            f"here write other ones, {len(prompt)}. Put those of the run in their place."
        )
    begun = start.continuation.begun
    turn = 0 if begun is None else len(begun.token_ids)
    response = sum(len(each.token_ids) for each in start.continuation.segments) + turn
    for name, number, limit in (
        ("the context of the engine", len(prompt) + response, context),
        ("rollout.sampling.max_response_tokens", response, parts.settings.max_response_tokens),
        ("rollout.sampling.max_turn_tokens", turn, parts.settings.max_turn_tokens or context),
    ):
        if edit is not None and number >= limit:
            raise ConfigError(
                f"`--edit` must leave room for the policy, but {number} tokens stand before what it would write, and "
                f"{name} is {limit}. Give a shorter text."
            )
