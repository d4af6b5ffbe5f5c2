"""A GGUF file becomes a folder that transformers loads: the same logits, its tokenizer, its template."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from aepo_lightning.errors import DataError
from aepo_lightning.policy.gguf_model import convert
from tests.support.gguf import model_tensors, model_values, tiny_llama, write_gguf

IDS = torch.tensor([[1, 70, 80, 81, 90, 33, 2]])


def write(path, model, **values):
    return write_gguf(path, model_values(model.config) | values, model_tensors(model))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_the_folder_computes_the_logits_of_the_model(tmp_path, is_tied):
    model = tiny_llama(is_tied)
    convert(write(tmp_path / "file.gguf", model), tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    assert loaded.config.tie_word_embeddings == is_tied
    assert loaded.config.rms_norm_eps == model.config.rms_norm_eps
    assert torch.equal(logits(loaded.float()), logits(model.eval()))
    generation = loaded.generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 2)
    assert generation.use_cache


def test_the_tokenizer_splits_digits_and_keeps_specials_and_the_template(tmp_path):
    convert(write(tmp_path / "file.gguf", tiny_llama()), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    digits = tokenizer.encode("12")
    assert len(digits) == 2  # although there is a token 12
    assert tokenizer.decode(digits) == "12"
    text = tokenizer.apply_chat_template([{"role": "user", "content": "é\n x"}], tokenize=False)
    assert text == "<|im_start|>user\né\n x<|im_end|>\n"
    ids = tokenizer.encode(text)
    assert (ids[0], ids[-2]) == (1, 2)
    assert tokenizer.decode(ids) == text
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|im_end|>", "<|im_start|>")


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"general.architecture": "qwen3"}, "general.architecture of .* must be llama, but is 'qwen3'"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, "tokenizer.ggml.pre of .* must be smollm, but is 'llama-bpe'"),
    ],
    ids=["architecture", "tokenizer"],
)
def test_another_model_is_refused(tmp_path, values, rule):
    with pytest.raises(DataError, match=rule):
        convert(write(tmp_path / "file.gguf", tiny_llama(), **values), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_of_another_model_is_refused(tmp_path):
    model = tiny_llama()
    tensors = model_tensors(model)
    tensors["rope_freqs.weight"] = tensors["output_norm.weight"]
    path = write_gguf(tmp_path / "file.gguf", model_values(model.config), tensors)
    with pytest.raises(DataError, match=r"must be those of a Llama, but there is rope_freqs.weight"):
        convert(path, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    command = [sys.executable, "-m", "aepo_lightning.policy.gguf_model", tmp_path / "none.gguf", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("DataError: ")
    assert "Traceback" not in done.stderr
