"""Architectures whose attention is not what packing computes are refused, each by name."""

import inspect
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from aepo_lightning.errors import TrainingError
from aepo_lightning.ops.tree_attention import QueryKind
from aepo_lightning.ops.tree_packing import pack_rows
from aepo_lightning.policy import packed
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.packed import WHOLE_ROWS, attend_with, padded_attention
from tests.support.builders import tiny_policy

ROWS = ([5, 9, 17, 30, 31, 8], [5, 9, 17, 40])


def score(network, rows=ROWS):
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(1, width) < lengths[:, None]
    return network(ids, mask, packed=pack_rows(ids, lengths, mask))


def network_of(model_type, **fields):
    return PolicyNetwork(tiny_policy(model_type=model_type, **fields).build_model())


REFUSED = {
    "sliding window": (
        {"model_type": "mistral", "sliding_window": 5},
        "must fit the model's attention window of 5 tokens, but one has 6. Use `experience.packing=padded`",
    ),
    "window in some layers": (
        {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        "must fit the model's attention window of 5 tokens",
    ),
    "soft caps": ({"model_type": "gemma2", "head_dim": 8, "sliding_window": 64}, "must not need `softcap`"),
    "state spaces beside attention": (
        {"model_type": "falcon_h1", "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_d_ssm": 64},
        r"those of FalconH1ForCausalLM differ by 0\.\d+ of their norm, where rounding may make 0\.0001",
    ),
}


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED)
def test_attention_that_is_not_plain_is_refused(fields, message):
    with pytest.raises(TrainingError, match=message):
        score(network_of(**fields).train())


def test_a_window_that_holds_every_trajectory_changes_nothing():
    windowed = network_of("mistral", sliding_window=6)
    plain = network_of("mistral", sliding_window=None)
    assert torch.equal(score(windowed).logprobs, score(plain).logprobs)


def test_a_layer_that_mixes_tokens_in_its_own_way_is_refused():
    network = network_of("qwen3")
    attention = network.model.model.layers[1].self_attn
    attention.forward = lambda hidden_states, **_: (hidden_states, None)
    with pytest.raises(TrainingError, match=r"Each of 2 layers must attend .* but 1 of Qwen3ForCausalLM did"):
        score(network)


def test_a_saved_model_knows_nothing_of_packing(tmp_path):
    network = network_of("qwen3")
    score(network)
    network.model.save_pretrained(tmp_path)
    assert "aepo" not in (tmp_path / "config.json").read_text()
    assert type(network.model).from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_padded_rows_keep_their_window_after_packed_ones():
    network = network_of("mistral", sliding_window=4)
    ids = torch.tensor([[5, 9, 17, 30, 31, 8, 7, 6]])
    mask = torch.ones(1, 7, dtype=torch.bool)
    before = network(ids, mask)
    score(network, rows=([5, 9, 17, 30], [5, 9, 17, 40]))
    assert torch.equal(network(ids, mask).logprobs, before.logprobs)


def test_the_check_of_packing_changes_no_number():
    checked, unchecked = network_of("qwen3"), network_of("qwen3")
    unchecked._has_checked_packing = True
    for network in (checked, unchecked):
        score(network).logprobs.sum().backward()
    assert torch.equal(score(checked).logprobs, score(unchecked).logprobs)
    for one, other in zip(checked.parameters(), unchecked.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("fields", [{"model_type": "qwen3"}, {"model_type": "mistral", "sliding_window": 4}])
def test_padded_rows_under_our_name_are_those_of_sdpa(fields):
    model = tiny_policy(**fields).build_model()
    ids = torch.tensor([[5, 9, 17, 30, 31, 8, 7, 6], [5, 9, 2, 3, 0, 0, 0, 0]])
    found = {}
    for name in ("sdpa", WHOLE_ROWS):
        attend_with(model, name)
        states = model.model(input_ids=ids, use_cache=False).last_hidden_state
        found[name] = [states, *torch.autograd.grad(states.square().sum(), [*model.model.layers.parameters()])]
    assert all(map(torch.equal, found["sdpa"], found[WHOLE_ROWS]))


def test_padded_rows_attend_by_our_name_on_cuda_only():
    assert padded_attention("sdpa", torch.device("cuda")) == WHOLE_ROWS
    assert padded_attention("sdpa", torch.device("cpu")) == "sdpa"
    assert padded_attention("eager", torch.device("cuda")) == "eager"


class OnDevice(NamedTuple):
    """What is asked of a tensor whose device this machine may not have."""

    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype


@pytest.mark.parametrize(
    ("kind", "is_autocast", "capability", "num_heads"),
    [
        (("cuda", torch.float32, 8), False, (9, 0), 4),
        (("cuda", torch.bfloat16, 320), False, (9, 0), 4),
        (("cuda", torch.float16, 8), False, (7, 5), 4),
        (("cuda", torch.float32, 8), True, (9, 0), 2),
        (("cuda", torch.bfloat16, 8), False, (9, 0), 2),
        (("cpu", torch.float32, 8), False, (9, 0), 2),
    ],
    ids=["float32", "wide heads", "old gpu", "autocast", "bfloat16", "cpu"],
)
def test_keys_are_repeated_only_where_flash_attention_cannot_share_them(
    monkeypatch, kind, is_autocast, capability, num_heads
):
    device, dtype, dim = kind
    query, key = (OnDevice((1, heads, 3, dim), torch.device(device), dtype) for heads in (4, 2))
    monkeypatch.setattr(packed, "repeat_kv", lambda tensor, groups: tensor._replace(shape=(1, 2 * groups, 3, dim)))
    monkeypatch.setattr(packed, "sdpa_attention_forward", lambda layer, _, *rest: (layer, *rest))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: is_autocast)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(packed.QueryKind, "of", lambda found: QueryKind(found.device, found.dtype, found.shape[-1]))
    monkeypatch.setattr(packed, "_kind_in_products", inspect.unwrap(packed._kind_in_products))
    module = SimpleNamespace(num_key_value_groups=2, is_causal=False)
    layer, own_key, own_value, _ = inspect.unwrap(packed._attend_over_rows)(module, query, key, key, None)
    assert [tensor.shape[1] for tensor in (own_key, own_value)] == [num_heads, num_heads]
    assert getattr(layer, "num_key_value_groups", 1) == 4 // num_heads  # transformers repeats them no second time
    assert layer.is_causal is False


@pytest.mark.gpu
@pytest.mark.parametrize("is_masked", [False, True])
def test_padded_float32_rows_keep_no_matrix_of_all_pairs(gpu_device, is_masked):
    length = 2048 if gpu_device == "cuda" else 64
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 4, True
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, heads, length, 32, generator=generator) for heads in (8, 2, 2)]
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    found = [tensor.to(gpu_device).requires_grad_() for tensor in inputs]
    mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=gpu_device).tril() if is_masked else None
    expected = scaled_dot_product_attention(*exact, is_causal=True, enable_gqa=True).transpose(1, 2)
    if gpu_device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    out = packed._attend_over_rows(module, *found, mask)[0]
    grads = torch.autograd.grad(out.square().sum(), found)
    if gpu_device == "cuda":
        assert torch.cuda.max_memory_allocated() - before < 8 * length**2 * 4
    for one, other in zip((out, *grads), (expected, *torch.autograd.grad(expected.square().sum(), exact)), strict=True):
        torch.testing.assert_close(one.detach().cpu().double(), other.detach(), rtol=1e-4, atol=1e-4)
