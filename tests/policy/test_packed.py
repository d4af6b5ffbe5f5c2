"""Architectures whose attention is not what packing computes are refused, each by name."""

import pytest
import torch

from aepo_lightning.errors import TrainingError
from aepo_lightning.ops.tree_packing import pack_rows
from aepo_lightning.policy.network import PolicyNetwork
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
