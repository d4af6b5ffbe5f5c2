"""Protecting the trainer's process, with and without vLLM installed."""

import gc
import random
from importlib.util import find_spec

import numpy as np
import pytest
import torch

import aepo_lightning.engines
from aepo_lightning.engines.vllm.engine import VLLMEngine
from aepo_lightning.engines.vllm.launch import undisturbed_process
from aepo_lightning.errors import EngineError
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


def test_the_engines_package_does_not_offer_vllm():
    assert "VLLMEngine" not in aepo_lightning.engines.__all__


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_error_names_the_extra():
    with pytest.raises(EngineError, match=r"vLLM is not installed\. Install the `vllm` extra"):
        VLLMEngine(tiny_policy(), max_model_len=64)
