import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from aepo_lightning.policy.tokenizers import PROTOCOL_TAGS, build_byte_tokenizer, build_word_tokenizer

WORDS = ("find", "e0", "e1", "<search>", "</search>", "\\boxed{", "}", ",", "n't")
WORD_TOKENIZER = build_word_tokenizer(WORDS)
BYTE_TOKENIZER = build_byte_tokenizer()
CHAT = [{"role": "system", "content": "find e0"}, {"role": "user", "content": "find e1"}]


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def test_word_ids_are_special_tokens_then_words_in_order():
    assert WORD_TOKENIZER.convert_ids_to_tokens(list(range(3 + len(WORDS)))) == ["<pad>", "<eos>", "<unk>", *WORDS]
    assert len(WORD_TOKENIZER) == 3 + len(WORDS)
    assert (WORD_TOKENIZER.pad_token_id, WORD_TOKENIZER.eos_token_id, WORD_TOKENIZER.unk_token_id) == (0, 1, 2)


@given(st.lists(st.sampled_from(WORDS), max_size=20))
def test_word_round_trip_joins_words_with_one_space(words):
    ids = encode(WORD_TOKENIZER, "  \n ".join(words))
    assert len(ids) == len(words)
    assert WORD_TOKENIZER.decode(ids, skip_special_tokens=True) == " ".join(words)


def test_encoding_adds_nothing_by_default():
    assert WORD_TOKENIZER.encode("find e1") == encode(WORD_TOKENIZER, "find e1") == [3, 5]
    assert BYTE_TOKENIZER.encode("ab") == encode(BYTE_TOKENIZER, "ab")


def test_unknown_words_become_unk():
    assert encode(WORD_TOKENIZER, "find e99 e1") == [3, 2, 5]


@pytest.mark.parametrize("tokenizer", [WORD_TOKENIZER, BYTE_TOKENIZER], ids=["word", "byte"])
def test_decoding_without_special_tokens_keeps_tags_and_drops_pad_and_eos(tokenizer):
    ids = encode(tokenizer, "<search> e1 </search>")
    ended = [*ids, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.pad_token_id]
    assert tokenizer.decode(ended, skip_special_tokens=True) == "<search> e1 </search>"


@pytest.mark.parametrize("bad", ["", "two words", " lead", "tab\t", "<eos>", "find"], ids=repr)
def test_word_vocabulary_refuses_words_it_could_not_tell_apart(bad):
    with pytest.raises(ValueError, match=r"must be non-empty|must occur once"):
        build_word_tokenizer(("find", bad))


@given(st.text())
def test_byte_round_trip_is_exact_for_any_text(text):
    assert BYTE_TOKENIZER.decode(encode(BYTE_TOKENIZER, text)) == text


@given(st.lists(st.sampled_from([*PROTOCOL_TAGS, " ", "\n", "héllo", "漢", "<", ">", "</", "search>"]), max_size=12))
def test_byte_round_trip_is_exact_around_tags(pieces):
    text = "".join(pieces)
    assert BYTE_TOKENIZER.decode(encode(BYTE_TOKENIZER, text), skip_special_tokens=True) == text


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="<")))
def test_every_byte_outside_tags_is_one_token(text):
    assert len(encode(BYTE_TOKENIZER, text)) == len(text.encode("utf-8"))


@pytest.mark.parametrize("tag", PROTOCOL_TAGS)
def test_each_tag_is_one_ordinary_token(tag):
    ids = encode(BYTE_TOKENIZER, f"x{tag}y")
    assert len(ids) == 3
    assert ids[1] not in BYTE_TOKENIZER.all_special_ids


def test_byte_vocabulary_is_two_special_tokens_256_bytes_and_the_tags():
    assert (BYTE_TOKENIZER.pad_token_id, BYTE_TOKENIZER.eos_token_id) == (0, 1)
    assert len(BYTE_TOKENIZER) == 2 + 256 + len(PROTOCOL_TAGS)
    assert encode(BYTE_TOKENIZER, "".join(PROTOCOL_TAGS)) == list(range(258, 258 + len(PROTOCOL_TAGS)))


@pytest.mark.parametrize("bad", ["", "a", "é!", "<eos>", "<think>"], ids=repr)
def test_byte_vocabulary_refuses_extra_words_it_could_not_decode(bad):
    with pytest.raises(ValueError, match=r"must be ASCII|must occur once"):
        build_byte_tokenizer(("<think>", bad))


@pytest.mark.parametrize(
    "tokenizer, expected",
    [(WORD_TOKENIZER, "find e0 find e1"), (BYTE_TOKENIZER, "system: find e0\nuser: find e1\nassistant: ")],
    ids=["word", "byte"],
)
def test_chat_template_gives_the_prompt_as_ids(tokenizer, expected):
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert ids == encode(tokenizer, expected)


def test_byte_template_opens_no_turn_when_not_generating():
    text = BYTE_TOKENIZER.apply_chat_template(CHAT, add_generation_prompt=False, tokenize=False)
    assert text == "system: find e0\nuser: find e1\n"


@pytest.mark.parametrize("tokenizer", [WORD_TOKENIZER, BYTE_TOKENIZER], ids=["word", "byte"])
def test_saving_and_loading_changes_nothing(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<search> find, e1 n't </search>\n e0"
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert encode(loaded, text) == encode(tokenizer, text)
    assert loaded.decode(encode(loaded, text)) == tokenizer.decode(encode(tokenizer, text))
    assert loaded.apply_chat_template(CHAT, tokenize=False) == tokenizer.apply_chat_template(CHAT, tokenize=False)
