"""Text to tokens and back for one tokenizer, with everything that could steer the parser made harmless."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from aepo_lightning.contracts.question import Message

CALL_TAGS = ("search", "python", "browse")
"""Tags that the paper knows as tool calls, whether or not the run has such a tool."""
_TAGS = (*CALL_TAGS, "think", "result", "answer", "tool_call", "tool_response", "tools")
"""Names that steer a parser, a reward or the policy itself, whatever the format: none comes from a tool."""


class TextCodec:
    """What all chat formats do with text. Nothing is ever encoded twice."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, own_tags: Iterable[str] = (), tools: Sequence[Any] = ()
    ) -> None:
        """Prepare the codec.

        Args:
            tokenizer: Tokenizer of the policy.
            own_tags: Names of tags that this run has beside those that every run has. Tool results never contain any
                of them, nor special tokens.
            tools: Function schemas for the chat template.
        """
        self._tokenizer = tokenizer
        self._tools = list(tools)
        guarded = set(tokenizer.all_special_tokens)
        # Some chat markers are in no list of special tokens: those Llama 3 reserves, Qwen's `<tool_call>`.
        added = tokenizer.added_tokens_decoder.values()
        guarded.update(token.content for token in added if token.special or token.content.startswith(("<", "[")))
        names = "|".join(map(re.escape, sorted({*_TAGS, *own_tags})))
        texts = map(re.escape, sorted(guarded - {""}, key=len, reverse=True))
        # Parsers take tags as they are spelt; a policy may well take them with spaces and capitals.
        self._guarded = re.compile("|".join((*texts, rf"<\s*/?\s*(?:{names})\s*/?\s*>")), re.IGNORECASE)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._normalizer = None if backend is None else backend.normalizer
        # Procedural tasks write the same few prompts and results over and over.
        self._encode = lru_cache(maxsize=8192)(self._encode_text)
        self._write = lru_cache(maxsize=8192)(self._write_prompt)

    @property
    def vocab_size(self) -> int:
        """V: number of entries of the tokenizer."""
        return len(self._tokenizer)

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Write the messages with the tokenizer's chat template.

        Raises:
            ValueError: If the tokenizer has no chat template.
        """
        if self._tokenizer.chat_template is None:
            raise ValueError("The tokenizer must have a chat template, but got none. Set `tokenizer.chat_template`.")
        return list(self._write(tuple(messages)))

    def encode_text(self, text: str) -> list[int]:
        """Encode text that no policy sampled (tool results, demonstrations), without adding anything to it."""
        return list(self._encode(text))

    def _encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def _write_prompt(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        chat = [{"role": message.role, "content": message.content} for message in messages]
        ids = self._tokenizer.apply_chat_template(
            chat, tools=self._tools or None, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return tuple(ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def neutralise(self, text: str) -> str:
        """Replace the first character of every control tag and special token by an entity."""
        harmless = self._guarded.sub(_defuse, text)
        if self._normalizer is None or not self._guarded.search(self._normalizer.normalize_str(harmless)):
            return harmless
        # The tokenizer turns other characters into those of a tag, or leaves some out.
        return self._guarded.sub(_defuse, "".join(map(self._spell_out, harmless)))

    def _spell_out(self, character: str) -> str:
        """Return an entity for what the tokenizer would replace by plain ASCII characters, or by nothing."""
        if (character.isascii() and character.isprintable()) or character.isspace():
            return character
        assert self._normalizer is not None, "it has changed something"
        return f"&#{ord(character)};" if self._normalizer.normalize_str(character).isascii() else character


def _defuse(match: re.Match[str]) -> str:
    return f"&#{ord(match[0][0])};{match[0][1:]}"
