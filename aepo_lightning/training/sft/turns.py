"""Conversations as demonstrations: turns of the policy and of tools, as rollouts have them.

A conversation in which somebody asks again is one demonstration for each time: the policy meets earlier turns in its
prompt, where chat templates leave thoughts out, so that one pass over the whole would train on what it never sees.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from aepo_lightning.contracts.chat_format import CallWritingChatFormat, ChatFormat
from aepo_lightning.contracts.generation import FinishReason
from aepo_lightning.contracts.question import Demonstration, DemonstrationTurn, Message, Question, SegmentSource
from aepo_lightning.contracts.tool import ToolSpec
from aepo_lightning.rollout.steps import opening_of
from aepo_lightning.tasks.conversations import ChatMessage, Conversation, Fault, UnusableRowError, WrittenCall

_RESULT = re.compile(r"\s*<result>\n?(.*?)\n?</result>", re.DOTALL)
_OF_TOOLS = re.compile(r"</?(?:result|tool_response)>")
"""Tags that only what writes results may use."""
_PAIRED = ("think", "answer", "tool_call")


def demonstrations_of(
    conversation: Conversation, chat_format: ChatFormat, specs: Sequence[ToolSpec], name: str
) -> list[Demonstration]:
    """Return what a policy is shown of a conversation: one demonstration for each time that somebody asks.

    Args:
        conversation: Its messages.
        chat_format: Of the rollouts. It writes calls that do not stand in a text.
        specs: Tools of the run, which such calls must be of.
        name: Begins the ids of the questions.

    Raises:
        UnusableRowError: If a rollout cannot look so.
    """
    reading = _Reading(chat_format=chat_format, specs={spec.name: spec for spec in specs}, name=name)
    for message in conversation:
        reading.take(message)
    reading.close()
    if not reading.found:
        raise UnusableRowError(Fault.NO_ASSISTANT, [message.role for message in conversation])
    return reading.found


@dataclass(slots=True, kw_only=True)
class _Reading:
    """What was read of a conversation so far."""

    chat_format: ChatFormat
    specs: dict[str, ToolSpec]
    name: str
    found: list[Demonstration] = field(default_factory=list)
    _prompt: list[Message] = field(default_factory=list)
    _turns: list[DemonstrationTurn] = field(default_factory=list)
    _open_calls: list[WrittenCall] = field(default_factory=list)
    """Calls of the last turn that are not written in its text, and whose results have not come."""
    _results: list[tuple[int, str]] = field(default_factory=list)
    """Results of the last turn, each with the place of its call."""

    def take(self, message: ChatMessage) -> None:
        """Read the next message."""
        if message.role == "tool":
            self._results.append((self._place_of(message), message.text))
            return
        self._end_results()
        if message.role == "assistant":
            self._answer(message)
        else:
            self.close()
            self._prompt.append(Message(role=message.role, content=message.text))

    def close(self) -> None:
        """End the demonstration that has begun, if one has."""
        self._end_results()
        if not self._turns:
            return
        turns = tuple(self._turns)
        _check_turns(turns, self.chat_format)
        question_id = f"{self.name}-{len(self.found)}" if self.found else self.name
        question = Question(question_id=question_id, messages=tuple(self._prompt), answers=())
        self.found.append(Demonstration(question=question, turns=turns))
        self._prompt += _as_messages(turns, self.chat_format)
        self._turns = []

    def _answer(self, message: ChatMessage) -> None:
        if not any(each.role == "user" for each in self._prompt):
            raise UnusableRowError(Fault.NO_QUESTION, message.text)
        if self._turns and self._turns[-1].source is SegmentSource.POLICY:
            raise UnusableRowError(Fault.TWO_TURNS, message.text)
        text = message.text
        if len(message.calls) > 1 and self.chat_format.stop:  # which ends a turn after the first
            raise UnusableRowError(Fault.UNWRITABLE_CALL, f"{len(message.calls)} calls in one turn")
        if message.calls:
            calls = "\n".join(self._written(call) for call in message.calls)
            text = f"{text.rstrip()}\n{calls}" if text.strip() else calls
        self._open_calls = list(message.calls)
        self._turns += _pieces(text) if self.chat_format.stop else [_own(text)]

    def _written(self, call: WrittenCall) -> str:
        if call.name not in self.specs:
            raise UnusableRowError(Fault.UNKNOWN_TOOL, call.name)
        spec = self.specs[call.name]
        missing = {*spec.parameters.get("required", ())} - {*call.arguments}
        if missing or not isinstance(self.chat_format, CallWritingChatFormat):
            raise UnusableRowError(Fault.UNWRITABLE_CALL, call)
        try:
            return self.chat_format.write_call(spec, call.arguments)
        except KeyError:  # an argument that this way of writing cannot do without
            raise UnusableRowError(Fault.UNWRITABLE_CALL, call) from None

    def _place_of(self, message: ChatMessage) -> int:
        """Return which call of the last turn a message answers: the one that it names, else the next one."""
        ids = [call.call_id for call in self._open_calls]
        if message.call_id and any(ids):
            if message.call_id not in ids:
                raise UnusableRowError(Fault.RESULT_WITHOUT_CALL, message.call_id)
            return ids.index(message.call_id)
        return len(self._results)

    def _end_results(self) -> None:
        """Put the results of the last turn after it, in the order of their calls."""
        if twice := [place for place, count in Counter(place for place, _ in self._results).items() if count > 1]:
            raise UnusableRowError(Fault.RESULT_WITHOUT_CALL, f"two results for call {twice[0] + 1} of a turn")
        ordered = sorted(self._results, key=lambda each: each[0])
        self._turns += [DemonstrationTurn(source=SegmentSource.TOOL, text=text) for _, text in ordered]
        self._results, self._open_calls = [], []


def _own(text: str) -> DemonstrationTurn:
    return DemonstrationTurn(source=SegmentSource.POLICY, text=text)


def _pieces(text: str) -> list[DemonstrationTurn]:
    """Return the turns that a text holds: results in it, in their tags, are those of tools."""
    own_and_results = _RESULT.split(text)
    turns = [_own(own_and_results[0])]
    for result, own in zip(own_and_results[1::2], own_and_results[2::2], strict=True):
        turns.append(DemonstrationTurn(source=SegmentSource.TOOL, text=result))
        turns.append(_own(own))
    # After a result at the very end nothing is said; the next message may go on.
    return turns[:-1] if len(turns) > 1 and not turns[-1].text.strip() else turns


def _check_turns(turns: Sequence[DemonstrationTurn], chat_format: ChatFormat) -> None:
    """Refuse turns that no rollout consists of.

    Raises:
        UnusableRowError: If a turn is empty, tags are broken, or calls and results do not belong together.
    """
    own = [turn.text for turn in turns if turn.source is SegmentSource.POLICY]
    if turns[0].source is SegmentSource.TOOL:
        raise UnusableRowError(Fault.RESULT_WITHOUT_CALL, turns[0].text)
    for text in own:
        if not text.strip():
            raise UnusableRowError(Fault.EMPTY, text)
        if _OF_TOOLS.search(text):
            raise UnusableRowError(Fault.BROKEN_TAGS, text)
    if turns[-1].source is SegmentSource.TOOL:
        raise UnusableRowError(Fault.UNFINISHED, turns[-1].text)
    _check_tags(own, chat_format)
    for place, turn in enumerate(turns):
        if turn.source is SegmentSource.POLICY:
            results = _num_results_after(turns, place)
            _check_calls(turn.text, results, chat_format)


def _num_results_after(turns: Sequence[DemonstrationTurn], place: int) -> int:
    count = 0
    while place + count + 1 < len(turns) and turns[place + count + 1].source is SegmentSource.TOOL:
        count += 1
    return count


def _check_tags(texts: Sequence[str], chat_format: ChatFormat) -> None:
    """See that each tag is closed before it opens again, over all that the policy wrote."""
    names = {*_PAIRED, *(stop.strip("</>") for stop in chat_format.stop)}
    opening = opening_of(chat_format)
    whole = "\n".join(texts)
    whole = whole if not opening or whole.lstrip().startswith("<think>") else opening + whole
    for name in names:
        marks = re.findall(f"</?{re.escape(name)}>", whole)
        is_paired = len(marks) % 2 == 0 and all(mark[1] != "/" for mark in marks[::2])
        if not is_paired or any(one == other for one, other in pairwise(marks)):
            raise UnusableRowError(Fault.BROKEN_TAGS, f"{''.join(marks)} in {whole}")


def _check_calls(text: str, num_results: int, chat_format: ChatFormat) -> None:
    """See that a turn has as many calls as results, and ends with its call where a stop string ends it there."""
    if chat_format.stop:
        places = sorted(found.end() for stop in chat_format.stop for found in re.finditer(re.escape(stop), text))
        num_calls = len(places)
        if num_calls > 1 or (places and text[places[0] :].strip()):
            raise UnusableRowError(Fault.CALL_WITHOUT_RESULT, text[: places[0]])
    else:
        num_calls = len(chat_format.parse_calls(text, FinishReason.EOS))
    if num_calls != num_results:
        fault = Fault.CALL_WITHOUT_RESULT if num_calls > num_results else Fault.RESULT_WITHOUT_CALL
        raise UnusableRowError(fault, text)


def _as_messages(turns: Sequence[DemonstrationTurn], chat_format: ChatFormat) -> list[Message]:
    """Return turns as a later prompt has them: a message each where the chat template writes results, else one text."""
    if not chat_format.stop:
        roles = {SegmentSource.POLICY: "assistant", SegmentSource.TOOL: "tool"}
        return [Message(role=roles[turn.source], content=turn.text) for turn in turns]
    texts = [
        turn.text
        if turn.source is SegmentSource.POLICY
        else chat_format.decode(chat_format.encode_results([turn.text])[0])
        for turn in turns
    ]
    return [Message(role="assistant", content="".join(texts))]
