"""What a tokenizer's chat template writes. It is a program of the model's makers: one that fails is named in one line.

A template is tried on each kind of conversation before it is relied on, with a bound on its time.
"""

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from threading import Thread, get_ident
from typing import Any, TypeAlias, TypeVar

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from aepo_lightning.errors import ConfigError, boundary

T = TypeVar("T")
Chat: TypeAlias = Sequence[Mapping[str, Any]]

TIME_LIMIT_S = 5.0
"""CPU seconds for one conversation, which takes milliseconds."""
_POLL_S = 0.02
_QUESTION, _ANSWER = "XYQUESTIONYX", "XYANSWERYX"
_MAX_QUOTED = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageEnd:
    """What a template writes where a message of the policy is over."""

    text: str
    """Up to and including the token; blank for templates that mark no end."""
    token_id: int | None
    """None if the end is not marked, or marked by plain text that no token stands for."""

    @property
    def is_marked(self) -> bool:
        """Whether anything but white space marks the end."""
        return bool(self.text.strip())


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Any] = ()) -> None:
        """Keep the tokenizer.

        Args:
            tokenizer: Of the policy.
            tools: Function schemas that the template lists.
        """
        self._tokenizer = tokenizer
        self._tools = list(tools)
        self._tried: set[tuple[str, ...]] = set()

    def ids(self, chat: Chat) -> list[int]:
        """Return the tokens of a conversation and the opening of the policy's message.

        Raises:
            ConfigError: If there is no template, it fails or does not end, or leaves a message out.
        """
        self._try(chat)
        return list(self._write("such a conversation", chat, tokenize=True, return_dict=False))

    def text(self, chat: Chat, *, is_open: bool = True, has_tools: bool = True) -> str:
        """Return the text of a conversation.

        Args:
            chat: The messages.
            is_open: Whether the opening of the policy's message follows.
            has_tools: Whether the tools are listed.

        Raises:
            ConfigError: If there is no template, or it fails or does not end.
        """
        what = "messages of the roles " + ", ".join(dict.fromkeys(str(each["role"]) for each in chat))
        return str(self._write(what, chat, tokenize=False, is_open=is_open, has_tools=has_tools))

    def tail(self, after: Chat, *, is_open: bool = True, has_tools: bool = True) -> str:
        """Return what follows the policy's words in a conversation of a question, these words, and more messages.

        Args:
            after: The messages after the policy's.
            is_open: As in `text`.
            has_tools: As in `text`.

        Raises:
            ConfigError: If the policy's message is not written once and as it is.
        """
        chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}, *after]
        text = self.text(chat, is_open=is_open, has_tools=has_tools)
        pieces = text.split(_ANSWER)
        if len(pieces) != 2:
            raise ConfigError(
                f"The chat template must write the assistant's messages once each and as they are, but it wrote "
                f"{text[-_MAX_QUOTED:]!r}. Use a tokenizer whose template takes messages of the role `assistant`."
            )
        return pieces[1]

    def end_of_message(self) -> MessageEnd:
        """Return how the policy's last message ends.

        Raises:
            ConfigError: As `tail`.
        """
        return self.first_token(within_limit(lambda: self.tail((), is_open=False, has_tools=False)))

    def first_token(self, tail: str) -> MessageEnd:
        """Return the token that a text begins with, after white space; a text that begins with no token has none."""
        start = len(tail) - len(tail.lstrip())
        for text, token_id in self._added_tokens:
            if tail.startswith(text, start):
                return MessageEnd(text=tail[: start + len(text)], token_id=token_id)
        return MessageEnd(text=tail, token_id=None)

    @cached_property
    def _added_tokens(self) -> list[tuple[str, int]]:
        """Texts and ids of the tokens that are one wherever they stand, the longest first."""
        added = [(token.content, index) for index, token in self._tokenizer.added_tokens_decoder.items()]
        return sorted((each for each in added if each[0].strip()), key=lambda each: -len(each[0]))

    def opening(self) -> str:
        """Return the thoughts that the template opens in the policy's name at the end of a prompt, or nothing.

        Raises:
            ConfigError: As `text`.
        """
        chat = [{"role": "user", "content": _QUESTION}]
        tail = within_limit(lambda: self.text(chat, has_tools=False)).rpartition(_QUESTION)[2]
        return tail[found:] if (found := tail.find("<think>")) >= 0 else ""

    def _try(self, chat: Chat) -> None:
        """Write a conversation of the same roles once, within the time limit, and look for each message in it."""
        roles = tuple(str(message["role"]) for message in chat)
        if roles in self._tried:
            return
        marked = [{"role": role, "content": f"XY{place}MESSAGEYX"} for place, role in enumerate(roles)]
        text = within_limit(lambda: self.text(marked))
        for message in marked:
            if message["content"] not in text:
                raise ConfigError(_hidden(str(message["role"])))
        self._tried.add(roles)

    def _write(self, what: str, chat: Chat, *, is_open: bool = True, has_tools: bool = True, **how: Any) -> Any:
        if self._tokenizer.chat_template is None:
            raise ConfigError("The tokenizer must have a chat template, but got none. Set `tokenizer.chat_template`.")
        tools = self._tools if self._tools and has_tools else None
        failures: list[Exception] = []
        with boundary(failures.append):
            return self._tokenizer.apply_chat_template(_dicts(chat), tools=tools, add_generation_prompt=is_open, **how)
        raise self._explain(what, chat, failures[0])

    def _explain(self, what: str, chat: Chat, error: Exception) -> Exception:
        if isinstance(error, TemplateTimeError):
            return error
        if isinstance(error, TemplateSyntaxError):
            return ConfigError(
                f"The chat template must be a Jinja template, but line {error.lineno} of it is none: {error.message} "
                "Correct `chat_template` of the tokenizer."
            )
        said = " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_QUOTED]
        without = [message for message in chat if message["role"] != "system"]
        if len(without) < len(chat) and self._writes(without):
            return ConfigError(f"{_hidden('system')} It says: {said}")
        remedy = "Correct `chat_template` of the tokenizer."
        if any(message["role"] == "tool" for message in chat):
            remedy = "Set `rollout=default`, which writes results itself, or use a template that takes tool messages."
        return ConfigError(f"The chat template must write {what}, but it raised {said} {remedy}")

    def _writes(self, chat: Chat) -> bool:
        failures: list[Exception] = []
        with boundary(failures.append):
            self._tokenizer.apply_chat_template(
                _dicts(chat), tools=self._tools or None, add_generation_prompt=True, tokenize=False
            )
        return not failures


def message_end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends a message of the policy: the chat template's, or else the tokenizer's `eos_token`.

    Raises:
        ConfigError: If the chat template fails or does not end, or nothing ends a message.
    """
    found = None if tokenizer.chat_template is None else ChatTemplate(tokenizer).end_of_message().token_id
    end = tokenizer.eos_token_id if found is None else found
    if end is None:
        raise ConfigError("The tokenizer must have an `eos_token`, or its template an end of messages.")
    return int(end)


class TemplateTimeError(ConfigError):
    """A chat template that does not come to an end."""


def _dicts(chat: Chat) -> list[dict[str, Any]]:
    return [dict(message) for message in chat]


def _hidden(role: str) -> str:
    if role == "system":
        return (
            "The chat template must write system messages, but does not. Set `rollout.chat_format.system_role=user`, "
            "to put them before the question, or `rollout.chat_format.system_prompt=none`."
        )
    return f"The chat template must write messages of the role {role!r}, but it leaves them out. Correct the template."


def within_limit(work: Callable[[], T], limit_s: float | None = None) -> T:
    """Return what `work` returns, unless it computes for too long.

    Args:
        work: What a template does, in a thread of its own.
        limit_s: CPU seconds. None is `TIME_LIMIT_S`.

    Raises:
        ConfigError: If it was not over by then.
        Exception: What `work` raises.
    """
    limit_s = TIME_LIMIT_S if limit_s is None else limit_s
    found: list[T] = []
    failures: list[Exception] = []
    clocks: list[int] = []

    def run() -> None:
        with suppress(AttributeError):  # not on every system
            clocks.append(time.pthread_getcpuclockid(get_ident()))
        with boundary(failures.append):
            found.append(work())

    thread = Thread(target=run, name="aepo-chat-template", daemon=True)
    thread.start()
    start = time.monotonic()
    thread.join(_POLL_S)
    while thread.is_alive() and _seconds(clocks, start) < limit_s:
        thread.join(_POLL_S)
    if thread.is_alive():
        _interrupt(thread)
        raise TemplateTimeError(
            f"The chat template must write a conversation within {limit_s:g} s, but it is not done by then: it may "
            "loop for ever. Correct `chat_template` of the tokenizer."
        )
    if failures:
        raise failures[0]
    return found[0]


def _seconds(clocks: Sequence[int], start: float) -> float:
    """Return how long a thread has computed, where the system knows: that a busy machine takes long proves nothing."""
    if not clocks:
        return time.monotonic() - start
    with suppress(OSError):  # the thread has just ended
        return time.clock_gettime(clocks[0])
    return 0.0


def _interrupt(thread: Thread) -> None:
    """Have a thread that computes in Python raise, so that it ends and frees what it holds."""
    assert thread.ident is not None, "it was started"
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(TemplateTimeError))
    thread.join(1.0)
