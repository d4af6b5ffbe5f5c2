"""The engine's own copy of a model: device, precision, memory for keys and values."""

import asyncio

import pytest
import torch

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.engines.transformers.cuda_graphs import choose_capture
from aepo_lightning.engines.transformers.own_model import (
    build_own_model,
    choose_cache_gib,
    choose_device,
    choose_dtype,
)
from aepo_lightning.engines.transformers.slot_cache import SlotCache, slot_bytes, slots_within
from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.source import PretrainedPolicy
from tests.support.builders import tiny_policy

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def pretrained(tmp_path):
    policy = tiny_policy()
    policy.build_model().save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    return PretrainedPolicy(str(tmp_path))


@pytest.fixture
def with_gpus(monkeypatch):
    """A machine with GPUs, as far as the choice of one is concerned."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.parametrize(("rank", "expected"), [(None, 0), ("3", 3)])
def test_each_rank_has_a_gpu_of_its_own(name, rank, expected, with_gpus, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert choose_device(name) == torch.device("cuda", expected)


def test_a_device_that_is_named_is_taken(with_gpus):
    assert choose_device("cpu") == CPU
    assert choose_device("cuda:1") == torch.device("cuda", 1)


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(ConfigError, match=r"`device` must be one of this machine, but got 'cuda'"):
        choose_device("cuda")
    with pytest.raises(ConfigError, match=r"`device` must be auto or a device of torch, but got 'gpu'"):
        choose_device("gpu")


@pytest.mark.parametrize(
    ("dtype", "device", "for_files", "for_drawn"),
    [
        ("auto", CPU, None, None),
        ("auto", CUDA, torch.bfloat16, None),
        ("float32", CUDA, torch.float32, torch.float32),
        ("float16", CPU, torch.float16, torch.float16),
    ],
)
def test_weights_from_files_are_bfloat16_on_cuda(dtype, device, for_files, for_drawn, pretrained):
    assert choose_dtype(dtype, device, pretrained) is for_files
    assert choose_dtype(dtype, device, tiny_policy()) is for_drawn


@pytest.mark.parametrize("dtype", ["bf16", "int8", "long"])
def test_a_type_that_is_none_for_weights_is_refused(dtype):
    with pytest.raises(ConfigError, match=f"`dtype` must be auto or name a floating-point type, but got '{dtype}'"):
        choose_dtype(dtype, CPU, tiny_policy())


def test_weights_are_converted_and_rotary_frequencies_are_not():
    model = build_own_model(tiny_policy(tie_word_embeddings=True), CPU, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    frequencies = tiny_policy().build_model().model.rotary_emb.inv_freq
    assert torch.equal(model.model.rotary_emb.inv_freq, frequencies)


def test_an_engine_in_bfloat16_converts_what_is_published():
    policy = tiny_policy(initializer_range=0.1)
    engine = TransformersEngine(policy, max_num_seqs=2, max_model_len=32, dtype="bfloat16")
    assert engine.dtype == "bfloat16"
    published = tiny_policy(initializer_range=0.2).build_model()
    engine.load_weights(published.named_parameters(), 1)
    name, weight = next(published.named_parameters())
    assert torch.equal(engine._model.get_parameter(name), weight.bfloat16())
    generation = asyncio.run(engine.generate([5, 9], SamplingParams(max_tokens=3)))
    assert len(generation.token_ids) == 3


def test_the_cache_has_as_many_slots_as_its_memory_holds(caplog):
    caplog.set_level("INFO")
    config = tiny_policy().config
    size = slot_bytes(config, 33, torch.float32)
    assert size == 33 * 2 * 2 * 2 * 8 * 4  # tokens, keys and values, layers, heads, numbers of a head, bytes
    gib = 3.5 * size / 2**30
    assert slots_within(gib, size, 33, 2) == 2
    assert not caplog.messages
    engine = TransformersEngine(tiny_policy(), max_num_seqs=4, max_model_len=32, max_cache_gib=gib)
    assert engine._prefixes.num_idle == 3
    assert "keeps 3 sequences instead of 8" in caplog.text

    async def run():
        return await asyncio.gather(*(engine.generate([n + 3, 9], SamplingParams(max_tokens=3)) for n in range(6)))

    assert all(len(generation.token_ids) == 3 for generation in asyncio.run(run()))


def test_a_cache_without_room_for_a_sequence_is_refused():
    with pytest.raises(ConfigError, match=r"`max_cache_gib` must hold at least one sequence of 33 tokens"):
        TransformersEngine(tiny_policy(), max_num_seqs=4, max_model_len=32, max_cache_gib=1e-6)


def test_a_cache_that_the_device_has_no_room_for_is_refused(monkeypatch):
    def fail(*shape, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.raises(
        ConfigError, match=r"`max_cache_gib` must fit into the free memory of cuda:0, .* needs 4\.0 GiB"
    ):
        SlotCache(tiny_policy().config, 2**15, 512, CUDA, torch.float32, is_static=True)


@pytest.mark.parametrize(
    ("given", "is_gpu", "expected"), [("auto", True, 16.0), ("auto", False, 2.0), (3.0, False, 3.0), (0.5, True, 0.5)]
)
def test_the_bound_of_the_cache_follows_the_device(given, is_gpu, expected):
    assert choose_cache_gib(given, is_gpu) == expected


def test_graphs_are_for_cuda():
    assert choose_capture("auto", CPU) is None
    assert choose_capture(False, CUDA) is None
    with pytest.raises(ConfigError, match=r"`cuda_graphs` must be auto or false on 'cpu', but got true"):
        choose_capture(True, CPU)
    with pytest.raises(ConfigError, match=r"`cuda_graphs` must be auto, true or false, but got 'always'"):
        choose_capture("always", CPU)
