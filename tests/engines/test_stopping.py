"""Stop strings: found wherever token borders fall, and nowhere else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from aepo_lightning.engines.stopping import StopMatcher, TokenPieces
from aepo_lightning.policy.tokenizers import build_byte_tokenizer, build_word_tokenizer


def first_stop(pieces, stop):
    """The number of pieces after which the matcher says stop, or None."""
    matcher = StopMatcher(stop)
    return next((number for number, piece in enumerate(pieces, 1) if matcher.push(piece)), None)


def slow_first_stop(pieces, stop):
    texts = ["".join(pieces[:number]) for number in range(len(pieces) + 1)]
    return next((n for n, text in enumerate(texts) if any(s in text for s in stop)), None)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["<", "/", "search", ">", "x"], 4),
        (["</search>"], 1),
        (["a</sea", "rch>b"], 2),
        (["</sear", "</search>"], 2),
        (["<</search", ">"], 2),
        (["<search>", "</searc"], None),
        (["", "</search", "", ">"], 4),
    ],
    ids=str,
)
def test_a_stop_string_over_several_tokens_is_found_when_it_is_complete(pieces, expected):
    assert first_stop(pieces, ("</search>", "</python>")) == expected


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.text(alphabet="ab", max_size=4), max_size=12),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_the_tail_is_enough(pieces, stop):
    assert first_stop(pieces, tuple(stop)) == slow_first_stop(pieces, stop)


def test_stop_strings_of_one_character_are_found():
    assert first_stop(["a", "b;c"], (";",)) == 2


def test_without_stop_strings_nothing_stops():
    assert first_stop(["a", "b"], ()) is None


def test_pieces_join_to_the_decoded_text():
    tokenizer = build_byte_tokenizer()
    pieces = TokenPieces(tokenizer)
    ids = tokenizer.encode("x = 1 ;<search>a , b</search><eos>", add_special_tokens=False)
    assert "".join(pieces[token] for token in ids) == "x = 1 ;<search>a , b</search><eos>"


def test_pieces_are_exact_when_the_tokenizer_likes_to_clean_up():
    tokenizer = build_word_tokenizer([" .".strip(), "n't"])
    tokenizer.clean_up_tokenization_spaces = True
    assert TokenPieces(tokenizer)[tokenizer.convert_tokens_to_ids("n't")] == " n't"


def no_space_before_the_first():
    """A tokenizer as SentencePiece makes them: spaces begin a word, and a text loses the one that it begins with."""
    words = ("<unk>", "\u2581x", "</", "\u2581search", "search", ">", "\u2581</")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    ("tokens", "text", "stops"),
    [
        (["</", "\u2581search", ">"], "x</ search>", None),
        (["</", "search", ">"], "x</search>", 3),
        (["\u2581</", "search", ">"], "x </search>", 3),
    ],
    ids=["space", "none", "space before"],
)
def test_a_space_that_a_token_begins_with_counts(tokens, text, stops):
    tokenizer = no_space_before_the_first()
    pieces, ids = TokenPieces(tokenizer), tokenizer.convert_tokens_to_ids(tokens)
    assert "x" + "".join(pieces[token] for token in ids) == text
    assert tokenizer.decode(tokenizer.convert_tokens_to_ids(["\u2581x", *tokens])) == text
    assert first_stop([pieces[token] for token in ids], ("</search>",)) == stops
