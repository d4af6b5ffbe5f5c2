"""Text to tokens and back for one tokenizer, with everything that could steer the parser made harmless."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from aepo_lightning.types import Message


class TextCodec:
    """What all chat formats do with text. Nothing is ever encoded twice."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, control_texts: Iterable[str], tools: Sequence[Any] = ()
    ) -> None:
        """Prepare the codec.

        Args:
            tokenizer: Tokenizer of the policy.
            control_texts: Tags of the format. Tool results never contain them, nor special tokens.
            tools: Function schemas for the chat template.
        """
        self._tokenizer = tokenizer
        self._tools = list(tools)
        guarded = {*control_texts, *tokenizer.all_special_tokens}
        # Some chat markers are in no list of special tokens: those Llama 3 reserves, Qwen's `<tool_call>`.
        added = tokenizer.added_tokens_decoder.values()
        guarded.update(token.content for token in added if token.special or token.content.startswith("<"))
        self._guarded = re.compile("|".join(map(re.escape, sorted(guarded, key=len, reverse=True))))
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
        return self._guarded.sub(lambda match: f"&#{ord(match[0][0])};{match[0][1:]}", text)
