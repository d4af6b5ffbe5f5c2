"""Protecting the trainer's process, with and without vLLM installed."""

import gc
import json
import random
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

import aepo_lightning.engines
from aepo_lightning.engines.vllm import launch
from aepo_lightning.engines.vllm.engine import VLLMEngine
from aepo_lightning.engines.vllm.launch import undisturbed_process
from aepo_lightning.errors import EngineError
from aepo_lightning.policy.skeleton import meta_model
from aepo_lightning.policy.source import PretrainedPolicy
from tests.support.builders import tiny_policy


def test_random_states_and_threads_are_put_back_also_after_an_error():
    before = torch.rand(1).item(), random.random(), np.random.rand()
    own = torch.set_num_threads
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]

    def disturb():
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        torch.set_num_threads = print
        raise KeyError("disturbed")

    with pytest.raises(KeyError, match="disturbed"), undisturbed_process():
        disturb()
    assert before  # drawn first, so that all three generators are in use
    assert torch.set_num_threads is own
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_nothing_stays_frozen_that_was_not():
    before = gc.get_freeze_count()
    with undisturbed_process():
        gc.freeze()  # what vLLM does when it starts
    assert gc.get_freeze_count() == before == 0


OWN_CONFIG = """
from transformers import Qwen3Config

class OwnConfig(Qwen3Config):
    model_type = "own_kind"
"""
OWN_MODEL = """
from transformers import Qwen3ForCausalLM
from .own import OwnConfig

class OwnModel(Qwen3ForCausalLM):
    config_class = OwnConfig
"""


def started_with(config, monkeypatch):
    """Start a fake of vLLM; return its settings and what it finds in its folder."""
    found = []

    def start(model, **settings):
        found[:] = [settings, {path.name: path.read_text() for path in Path(model).iterdir()}]
        return MagicMock()

    fake = SimpleNamespace(LLM=start, current_platform=SimpleNamespace(is_cpu=lambda: False))
    monkeypatch.setattr(launch, "import_module", lambda _: fake)
    monkeypatch.setattr(launch, "_set_environment", lambda: None)
    launch.launch(meta_model(config), {"max_model_len": 8})
    return found


def test_a_model_with_code_of_its_own_reaches_vllm_with_it(tmp_path, monkeypatch):
    settings, files = started_with(tiny_policy().config, monkeypatch)
    assert "trust_remote_code" not in settings
    assert not any(name.endswith(".py") for name in files)
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "modeling.OwnModel"}
    fields = tiny_policy().config.to_dict() | {"model_type": "own_kind", "auto_map": own}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "own.py").write_text(OWN_CONFIG)
    (tmp_path / "modeling.py").write_text(OWN_MODEL)
    policy = PretrainedPolicy(str(tmp_path), trust_remote_code=True)
    settings, files = started_with(policy.config, monkeypatch)
    assert settings["trust_remote_code"] is True
    assert (files["own.py"], files["modeling.py"]) == (OWN_CONFIG, OWN_MODEL)
    assert json.loads(files["config.json"])["auto_map"] == own


def test_the_engines_package_does_not_offer_vllm():
    assert "VLLMEngine" not in aepo_lightning.engines.__all__


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_error_names_the_extra():
    with pytest.raises(EngineError, match=r"vLLM is not installed\. Install the `vllm` extra"):
        VLLMEngine(tiny_policy(), max_model_len=64)
