"""Text to tokens and back for one tokenizer, with everything that could steer the parser made harmless."""

from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Any, Literal, TypeAlias

from transformers import PreTrainedTokenizerBase

from aepo_lightning.chat_formats.guard import Guard
from aepo_lightning.chat_formats.template import ChatTemplate
from aepo_lightning.contracts.question import Message
from aepo_lightning.errors import ConfigError

SystemRole: TypeAlias = Literal["system", "user"]
"""Where a system message goes: its own place, or before the text of the first user message."""


class TextCodec:
    """What all chat formats do with text. Nothing is ever encoded twice."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        own_tags: Iterable[str] = (),
        tools: Sequence[Any] = (),
        system_role: SystemRole = "system",
    ) -> None:
        """Prepare the codec.

        Args:
            tokenizer: Tokenizer of the policy.
            own_tags: Names of tags that this run has beside those that every run has. Tool results never contain any
                of them, nor special tokens.
            tools: Function schemas for the chat template.
            system_role: `user` puts system messages before the question, for templates that take none.

        Raises:
            ConfigError: If `system_role` is unknown.
        """
        if system_role not in ("system", "user"):
            raise ConfigError(f"`system_role` must be system or user, but got {system_role!r}.")
        self._tokenizer = tokenizer
        self._system_role = system_role
        self.neutralise = Guard.of_results(tokenizer, own_tags)
        """Makes a tool's words harmless: control tags and special tokens in them get an entity."""
        self._neutralise_question = Guard.of_questions(tokenizer)
        self.template = ChatTemplate(tokenizer, [_each_text(self.neutralise, tool) for tool in tools])
        # Procedural tasks write the same few prompts and results over and over.
        self._encode = lru_cache(maxsize=8192)(self._encode_text)
        self._write = lru_cache(maxsize=8192)(self._write_prompt)

    @property
    def vocab_size(self) -> int:
        """V: number of entries of the tokenizer."""
        return len(self._tokenizer)

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Write the messages with the tokenizer's chat template. No control token comes from their words.

        Raises:
            ConfigError: If the tokenizer has no chat template, or it cannot write these messages.
        """
        return list(self._write(tuple(messages)))

    def encode_text(self, text: str) -> list[int]:
        """Encode text that no policy sampled (tool results, demonstrations), without adding anything to it."""
        return list(self._encode(text))

    def _encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def _write_prompt(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        placed = messages if self._system_role == "system" else _in_question(messages)
        clean = self._neutralise_question
        return tuple(self.template.ids([{"role": clean(each.role), "content": clean(each.content)} for each in placed]))

    @cached_property
    def opening(self) -> str:
        """What the chat template writes in the policy's name at the end of a prompt, such as `<think>`."""
        return "" if self._tokenizer.chat_template is None else self.template.opening()

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that decoding leaves out."""
        return special_ids(self._tokenizer)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that decoding leaves out."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset({*tokenizer.all_special_ids, *(index for index, token in added if token.special)})


def refuse_special(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> None:
    """Refuse a tokenizer for which what a format writes are special tokens.

    Raises:
        ConfigError: If a text is one.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if hidden := sorted((special | {*tokenizer.all_special_tokens}) & {*texts}):
        raise ConfigError(
            f'{hidden} must not be special tokens, because decoding leaves those out. Mark them `"special": false` in '
            "the tokenizer's files, and take them out of its lists of special tokens."
        )


def _each_text(clean: Guard, value: Any) -> Any:
    """Return a copy of plain data with every text in it cleaned, names of fields too."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list | tuple):
        return [_each_text(clean, each) for each in value]
    return {clean(key): _each_text(clean, each) for key, each in value.items()} if isinstance(value, dict) else value


def _in_question(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Put what system messages say before the text of the first other message."""
    told = [message.content for message in messages if message.role == "system"]
    others = [message for message in messages if message.role != "system"]
    if not told or not others:
        return tuple(messages)
    first = Message(role=others[0].role, content="\n\n".join([*told, others[0].content]))
    return (first, *others[1:])
