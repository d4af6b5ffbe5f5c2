"""Makes others' text harmless: nothing in it becomes a control token or a tag, and all of it stays visible."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

CALL_TAGS = ("search", "python", "browse")
"""Tags that the paper knows as tool calls, whether or not the run has such a tool."""
_TAGS = (*CALL_TAGS, "think", "result", "answer", "tool_call", "tool_response", "tools")
"""Names that steer a parser, a reward or the policy itself, whatever the format: none comes from a tool."""
_MARKER = re.compile(
    r"<\|[^|<>\s]{1,40}\|?>|<[^|<>\s]{1,40}\|>|<\uff5c[^\uff5c<>]{1,40}\uff5c>|<</?[A-Z]+>>|\[/?[A-Z_]{2,30}\]|</?s>"
    r"|<(?:start|end)_of_\w+>"
)
"""What chat templates write around messages, also where the tokenizer has no token for it, such as `<<SYS>>`."""
_MAX_PASSES = 8
"""Of replacing; a token inside a token inside a token needs three."""


def control_texts(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return what stands for a control token: special tokens, and what is written like one.

    That is a marker in the chat template, or a token which the tokenizer does not call special, such as Qwen's
    `<|fim_prefix|>`.
    """
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special or _MARKER.fullmatch(token.content)}
    return {*tokenizer.all_special_tokens, *special, *_MARKER.findall(str(tokenizer.chat_template or ""))} - {""}


class Guard:
    """Replaces the first character of each thing that is guarded by an entity.

    Args:
        tokenizer: Its normalizer may make a tag of what looks like one.
        texts: What is guarded, as it is spelt. Capitals make no difference.
        names: Names of tags that are guarded, with any spaces and slashes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], names: Iterable[str] = ()) -> None:
        parts = [each for each in [_longest_of(texts)] if each]
        if tags := "|".join(map(re.escape, sorted({*names}))):
            # Parsers take tags as they are spelt; a policy may well take them with spaces and capitals.
            parts.append(rf"<\s*/?\s*(?:{tags})\s*/?\s*>")
        self._pattern = re.compile("|".join(parts) or r"(?!)", re.IGNORECASE)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._normalizer = None if backend is None else backend.normalizer

    @classmethod
    def of_questions(cls, tokenizer: PreTrainedTokenizerBase) -> "Guard":
        """Return the guard of prompts: control tokens are made harmless, tags may be spoken of."""
        return cls(tokenizer, control_texts(tokenizer))

    @classmethod
    def of_results(cls, tokenizer: PreTrainedTokenizerBase, own_tags: Iterable[str]) -> "Guard":
        """Return the guard of what tools say: control tokens and every tag that a run knows are made harmless.

        Args:
            tokenizer: Of the policy.
            own_tags: Names of tags that this run has beside those that every run has.
        """
        # Some chat markers are in no list of special tokens: those Llama 3 reserves, Qwen's `<tool_call>`.
        added = {token.content for token in tokenizer.added_tokens_decoder.values()}
        marked = {text for text in added if text.startswith(("<", "["))}
        return cls(tokenizer, control_texts(tokenizer) | marked, (*_TAGS, *own_tags))

    def __call__(self, text: str) -> str:
        """Return the text, harmless."""
        harmless = self._defused(text)
        if self._normalizer is None or not self._pattern.search(self._normalizer.normalize_str(harmless)):
            return harmless
        # The tokenizer turns other characters into those of a tag, or leaves some out.
        return self._defused("".join(map(self._spell_out, harmless)))

    def _defused(self, text: str) -> str:
        """Replace until nothing is left: without its first character, one token may be another."""
        for _ in range(_MAX_PASSES):
            text, num_replaced = self._pattern.subn(_defuse, text)
            if not num_replaced:
                return text
        return self._pattern.sub("", text)  # of a tokenizer for which entities are control tokens

    def _spell_out(self, character: str) -> str:
        """Return an entity for what the tokenizer would replace by plain ASCII characters, or by nothing."""
        if (character.isascii() and character.isprintable()) or character.isspace():
            return character
        assert self._normalizer is not None, "it has changed something"
        return f"&#{ord(character)};" if self._normalizer.normalize_str(character).isascii() else character


def _longest_of(texts: Iterable[str]) -> str:
    """Return a pattern of the longest of some texts, in any capitals.

    Texts share the pattern of what they begin alike with: a tokenizer may have thousands of them, such as Gemma's
    `<unused0>` to `<unused6241>`, and each place of a page is tried.
    """
    tree: dict[str, Any] = {}
    for text in texts:
        node = tree
        for character in text:
            small = character.lower()
            node = node.setdefault(small if len(small) == 1 else character, {})
        node[""] = {}
    return _pattern_of(tree)


def _pattern_of(tree: Mapping[str, Any]) -> str:
    branches = [re.escape(character) + _pattern_of(rest) for character, rest in tree.items() if character]
    if len(branches) == 1 and "" not in tree:
        return branches[0]
    return f"(?:{'|'.join(branches)}){'?' if '' in tree else ''}" if branches else ""


def _defuse(match: re.Match[str]) -> str:
    return f"&#{ord(match[0][0])};{match[0][1:]}"
