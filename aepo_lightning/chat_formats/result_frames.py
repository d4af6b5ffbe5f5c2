"""What stands around tool results: the chat template writes it each time, whatever a result says."""

from collections.abc import Sequence
from typing import Any

from aepo_lightning.chat_formats.template import within_limit
from aepo_lightning.chat_formats.text_codec import TextCodec
from aepo_lightning.errors import ConfigError

_MARKS = ("XYFIRSTYX", "XYSECONDYX")
_ODD = (
    "",
    " ",
    "5",
    "null",
    "true",
    "[]",
    '{"a": "b", "c": [1, 2]}',
    "it's \"quoted\" \\ and 'so'",
    "\n two\n\nlines \n",
    "<b>bold</b> &amp; <br/>",
    "{{ braces }} {% raw %}",
    "\u00e9\u4e2d\U0001f600",
    "```py\nx = 1\n```",
    "word " * 1000,
)
"""Results that templates have been seen to stumble over."""


class ResultFrames:
    """Tool results as the chat template writes them after a message of the policy.

    Each turn's results are written by the template itself and encoded in one piece, so that its tokens are those of the
    template for any text, also where it trims a result or writes it as JSON.
    """

    def __init__(self, codec: TextCodec) -> None:
        """Try the template with one result and with two, and with odd ones.

        Args:
            codec: Of the policy's tokenizer, with the tools.

        Raises:
            ConfigError: If the template fails, does not end, or does not write each result once and in order.
        """
        self._codec = codec
        self._template = codec.template
        self._end = self._template.end_of_message()
        # Nearly all templates write the same whether or not tools are listed, and faster without.
        self._has_tools = False
        plain, listed = (within_limit(lambda has=has: self._tail(_MARKS, has)) for has in (False, True))  # type: ignore[misc]
        self._has_tools = plain != listed
        for marks in (_MARKS[:1], _MARKS):
            self._check(marks)
        within_limit(lambda: [self._tail([text]) for text in _ODD])

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of a turn's results, a list for each. The last ends with the opening of the next message.

        Args:
            texts: The results, harmless.
        """
        whole = self._tail(texts)
        ids = self._codec.encode_text(whole)
        pieces, start = [], 0
        for count in range(1, len(texts)):
            shared = whole[: _common(self._tail(texts[:count]), whole)]
            end = max(start, _common(self._codec.encode_text(shared), ids))
            pieces.append(ids[start:end])
            start = end
        return [*pieces, ids[start:]]

    def _tail(self, texts: Sequence[str], has_tools: bool | None = None) -> str:
        """Return what stands after the policy's message, whose end it has sampled itself."""
        chat: list[dict[str, Any]] = [{"role": "tool", "content": text, "name": "f"} for text in texts]
        tail = self._template.tail(chat, has_tools=self._has_tools if has_tools is None else has_tools)
        end = self._template.first_token(tail)
        is_end = end.token_id is not None and (
            end.token_id == self._end.token_id or end.token_id in self._codec.special_ids
        )
        return tail[len(end.text) :] if is_end else tail

    def _check(self, marks: Sequence[str]) -> None:
        tail = within_limit(lambda: self._tail(marks))
        places = [tail.find(mark) for mark in marks]
        if any(tail.count(mark) != 1 for mark in marks) or places != sorted(places):
            raise ConfigError(
                "The chat template must write assistant and tool messages once each and in order, but it wrote "
                f"{tail!r}. Set `rollout=default`, which writes results itself, or use a tokenizer whose template "
                "takes messages of the role `tool`."
            )


def _common(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return the length of the longest common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))
