"""Small Hugging Face tokenizers built from nothing: no download, no training, the same ids on every machine.

Two of them: one token per word, for procedural tasks with a closed vocabulary, and one token per byte, for any text.
Both carry a chat template. Protocol tags are ordinary tokens, so that decoding without special tokens keeps them.
"""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD_TOKEN = "<pad>"
EOS_TOKEN = "<eos>"
UNK_TOKEN = "<unk>"

PROTOCOL_TAGS = (
    "<think>",
    "</think>",
    "<search>",
    "</search>",
    "<python>",
    "</python>",
    "<result>",
    "</result>",
    "<answer>",
    "</answer>",
)
"""Tags of the trajectory protocol: reasoning, the two tool calls, the tool result, the final answer."""

JOIN_TEMPLATE = "{{ messages | map(attribute='content') | join(' ') }}"
"""Chat template that joins the contents of all messages with a space and adds nothing."""

ROLE_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""Chat template that writes one `role: content` line for each message."""


def build_word_tokenizer(words: Sequence[str], chat_template: str = JOIN_TEMPLATE) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token for each word; text is split at white space and at nothing else.

    Ids 0, 1 and 2 are `<pad>`, `<eos>` and `<unk>`; the words follow in order. Decoding joins with single spaces.

    Args:
        words: The vocabulary. Every other word is encoded as `<unk>`.
        chat_template: Jinja template that turns messages into a prompt.

    Raises:
        ValueError: If a word is empty, holds white space, occurs twice or is one of the three special tokens.
    """
    vocabulary = (PAD_TOKEN, EOS_TOKEN, UNK_TOKEN, *words)
    _check_distinct(vocabulary)
    for word in words:
        if word.split() != [word]:
            raise ValueError(f"`words` must be non-empty and free of white space, but got {word!r}. Split it in two.")
    model = models.WordLevel(vocab={word: index for index, word in enumerate(vocabulary)}, unk_token=UNK_TOKEN)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        unk_token=UNK_TOKEN,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def build_byte_tokenizer(
    extra_words: Sequence[str] = PROTOCOL_TAGS, chat_template: str = ROLE_TEMPLATE
) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token for each byte and one for each extra word; any text survives a round trip.

    Ids 0 and 1 are `<pad>` and `<eos>`, the 256 bytes follow, then the extra words in order. There is no unknown token
    because there is nothing it could stand for.

    Args:
        extra_words: Strings that are one token wherever they occur. They are not special: decoding keeps them.
        chat_template: Jinja template that turns messages into a prompt.

    Raises:
        ValueError: If an extra word is empty, not ASCII, a single byte, a special token, or occurs twice.
    """
    vocabulary = (PAD_TOKEN, EOS_TOKEN, *sorted(pre_tokenizers.ByteLevel.alphabet()))
    _check_distinct((*vocabulary, *extra_words))
    for word in extra_words:
        if len(word) < 2 or not word.isascii():  # the byte-level decoder reads other characters as single bytes
            raise ValueError(f"`extra_words` must be ASCII and longer than one character, but got {word!r}. Drop it.")
    model = models.BPE(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in extra_words])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def _check_distinct(vocabulary: Sequence[str]) -> None:
    """Refuse a vocabulary in which two ids would share a text."""
    seen: set[str] = set()
    for word in vocabulary:
        if word in seen:
            raise ValueError(f"Every word of a vocabulary must occur once, but got {word!r} twice. Drop one of them.")
        seen.add(word)
