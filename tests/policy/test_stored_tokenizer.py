"""Tokenizers are read as their own file defines them, whatever class the folder names."""

import json
import logging

import pytest

from aepo_lightning.policy.stored_tokenizer import load_tokenizer
from aepo_lightning.policy.tokenizers import build_byte_tokenizer
from tests.support.builders import word_tokenizer

TEXT = "one two\n  three, \u00e9"


def name_class(folder, name):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": name}))


@pytest.mark.parametrize("named", ["LlamaTokenizerFast", "LlamaTokenizer"])
def test_a_class_that_would_lose_the_spaces_is_left_out_with_a_word(tmp_path, caplog, named):
    # As DeepSeek's models and those distilled from them name Llama's class over bytes.
    whole = build_byte_tokenizer()
    whole.save_pretrained(tmp_path)
    name_class(tmp_path, named)
    with caplog.at_level(logging.WARNING):
        loaded = load_tokenizer(str(tmp_path))
    assert loaded.encode(TEXT) == whole.encode(TEXT)
    assert loaded.decode(loaded.encode(TEXT)) == TEXT
    assert (loaded.get_vocab(), loaded.chat_template) == (whole.get_vocab(), whole.chat_template)
    assert (loaded.eos_token, loaded.pad_token) == (whole.eos_token, whole.pad_token)
    assert "LlamaTokenizer, the class that it names, loses the spaces of every text" in caplog.text


@pytest.mark.parametrize("whole", [build_byte_tokenizer(), word_tokenizer()], ids=["bytes", "words"])
def test_any_other_is_loaded_as_it_was_without_a_word(tmp_path, caplog, whole):
    whole.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = load_tokenizer(str(tmp_path))
    assert type(loaded) is type(whole)
    assert loaded.get_vocab() == whole.get_vocab()
    assert not caplog.records


def test_a_named_class_without_a_file_to_read_instead_stays(tmp_path, caplog):
    # Words that BERT's vocabulary lacks do not come back, either.
    (tmp_path / "vocab.txt").write_text("[UNK]\n[SEP]\n[PAD]\n[CLS]\n[MASK]\na\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with caplog.at_level(logging.WARNING, "aepo_lightning"):
        loaded = load_tokenizer(str(tmp_path))
    assert type(loaded).__name__.startswith("BertTokenizer")
    assert not [record for record in caplog.records if record.name.startswith("aepo_lightning")]
