"""The training path scores tokens exactly as a plain forward pass and as the engine that sampled them."""

import asyncio

import pytest
import torch

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.ops.tree_packing import pack_rows
from aepo_lightning.policy.network import PolicyNetwork
from tests.support.builders import reference_scores, tiny_policy, with_head_bias
from tests.support.training import flat, relative_l2

# Two float32 computations of the same sums in another order; the requirement is 1e-4.
CLOSE = {"atol": 5e-6, "rtol": 5e-6}

MODELS = {
    "qwen3": {"model_type": "qwen3"},
    "qwen3_tied": {"model_type": "qwen3", "tie_word_embeddings": True},
    "qwen2_tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "llama": {"model_type": "llama"},
    "granite": {"model_type": "granite", "logits_scaling": 13.0, "embedding_multiplier": 3.0},
    "cohere": {"model_type": "cohere", "logit_scale": 0.3},
    "phi": {"model_type": "phi"},
}
ROWS = ([5, 9, 17, 30, 31, 8, 99, 120], [7, 200, 3], [11, 12, 13, 14, 15])
STARTS = (3, 1, 2)


def make_network(policy=None, **options):
    return PolicyNetwork(with_head_bias(policy or tiny_policy()).build_model(), **options)


def padded(rows=ROWS, starts=STARTS, pad=0, width=None):
    """Right-padded tokens, and a mask of every prediction from `start` on."""
    width = width or max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    columns = torch.arange(width - 1)
    ends = torch.tensor([len(row) for row in rows])[:, None]
    mask = (columns + 1 >= torch.tensor(starts)[:, None]) & (columns + 1 < ends)
    return ids, mask


def gradients(network, ids, mask, entropy="detached", temperature=1.0):
    network.zero_grad()
    scores = network(ids, mask, temperature, entropy)
    weights = torch.linspace(-1, 1, mask.numel()).reshape(mask.shape)
    loss = (scores.logprobs * weights).sum()
    if entropy == "grad":
        loss = loss + (scores.entropies * weights.flip(0)).sum()
    loss.backward()
    return flat(parameter.grad for parameter in network.parameters())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_scores_equal_those_of_a_plain_forward_pass(fields, temperature):
    network = make_network(tiny_policy(**fields))
    ids, mask = padded()
    with torch.no_grad():
        scores = network(ids, mask, temperature)
    for index, (row, start) in enumerate(zip(ROWS, STARTS, strict=True)):
        logprobs, entropies = reference_scores(network.model, row, start, temperature)
        found = slice(start - 1, len(row) - 1)
        torch.testing.assert_close(scores.logprobs[index, found], torch.tensor(logprobs), **CLOSE)
        torch.testing.assert_close(scores.entropies[index, found], torch.tensor(entropies), **CLOSE)
    assert float(scores.logprobs[~mask].abs().sum()) == float(scores.entropies[~mask].abs().sum()) == 0


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_scores_equal_those_of_the_engine_that_sampled(fields, temperature):
    policy = with_head_bias(tiny_policy(**fields))
    engine = TransformersEngine(policy, max_num_seqs=4, max_model_len=64)

    async def sample():
        params = [SamplingParams(max_tokens=4 + 3 * i, temperature=temperature, seed=i) for i in range(len(ROWS))]
        return await asyncio.gather(*map(engine.generate, ROWS, params))

    generations = asyncio.run(sample())
    rows = [prompt + generation.token_ids for prompt, generation in zip(ROWS, generations, strict=True)]
    ids, mask = padded(rows, [len(prompt) for prompt in ROWS])
    with torch.no_grad():
        scores = make_network(policy)(ids, mask, temperature)
    logprobs = torch.tensor([value for generation in generations for value in generation.logprobs])
    entropies = torch.tensor([value for generation in generations for value in generation.entropies])
    torch.testing.assert_close(scores.logprobs[mask], logprobs, **CLOSE)
    torch.testing.assert_close(scores.entropies[mask], entropies, **CLOSE)


def test_what_stands_in_the_padding_changes_nothing():
    network = make_network()
    ids, mask = padded()
    expected, expected_gradients = network(ids, mask), gradients(network, ids, mask)
    for pad, width in ((255, None), (7, 13)):
        other_ids, other_mask = padded(pad=pad, width=width)
        scores = network(other_ids, other_mask)
        torch.testing.assert_close(scores.logprobs[other_mask], expected.logprobs[mask], **CLOSE)
        torch.testing.assert_close(scores.entropies[other_mask], expected.entropies[mask], **CLOSE)
    found = gradients(network, padded(pad=255)[0], mask)
    assert relative_l2(found, expected_gradients) < 1e-6


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_gradient_checkpointing_recomputes_and_changes_no_gradient(is_tied):
    policy = tiny_policy(tie_word_embeddings=is_tied)
    counts, found = {}, {}
    for checkpointing in (False, True):
        network = make_network(policy, gradient_checkpointing=checkpointing).train()
        calls = []
        network.model.model.layers[0].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        found[checkpointing] = gradients(network, *padded())
        counts[checkpointing] = len(calls)
    assert counts == {False: 1, True: 2}
    assert relative_l2(found[True], found[False]) < 1e-6


def test_chunk_size_changes_no_number():
    results = []
    for chunk_size in (1, 3, 256):
        network = make_network(chunk_size=chunk_size)
        ids, mask = padded()
        results.append((network(ids, mask).logprobs.detach(), gradients(network, ids, mask, "grad")))
    for logprobs, grads in results[1:]:
        torch.testing.assert_close(logprobs, results[0][0], **CLOSE)
        assert relative_l2(grads, results[0][1]) < 1e-6


def test_entropy_gradients_equal_those_of_the_definition():
    network = make_network()
    ids, mask = padded()
    found = gradients(network, ids, mask, "grad", temperature=0.7)
    network.zero_grad()
    log_p = torch.log_softmax(network.model(input_ids=ids, use_cache=False).logits[:, :-1] / 0.7, -1)
    logprobs = log_p.gather(-1, ids[:, 1:, None])[..., 0]
    entropies = -(log_p.exp() * log_p).sum(-1)
    weights = torch.linspace(-1, 1, mask.numel()).reshape(mask.shape)
    ((logprobs * weights + entropies * weights.flip(0)) * mask).sum().backward()
    assert relative_l2(found, flat(p.grad for p in network.parameters())) < 1e-5


def test_entropies_carry_a_gradient_only_if_asked_to():
    network = make_network()
    ids, mask = padded()
    assert network(ids, mask, 1.0, "grad").entropies.requires_grad
    assert not network(ids, mask, 1.0, "detached").entropies.requires_grad
    assert not network(ids, mask, 1.0, "none").entropies.any()


@pytest.mark.parametrize("entropy", ["detached", "grad"])
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_an_empty_micro_batch_reaches_every_parameter_with_a_zero(is_tied, entropy):
    network = make_network(tiny_policy(tie_word_embeddings=is_tied))
    ids, mask = padded(pad=0)
    found = gradients(network, ids, torch.zeros_like(mask), entropy)
    assert found.numel() == sum(parameter.numel() for parameter in network.parameters())
    assert not found.any()


SHARED_ROWS = ([5, 9, 17, 30, 31, 8, 99, 120], [5, 9, 17, 200, 3], [5, 9, 17, 200, 4, 7], [11, 12, 13])


def packed(ids, mask, rows=SHARED_ROWS, shares_prefixes=True):
    lengths = torch.tensor([len(row) for row in rows])
    return pack_rows(ids, lengths, mask, shares_prefixes=shares_prefixes)


@pytest.mark.parametrize("shares", [True, False], ids=["tree", "flat"])
@pytest.mark.parametrize("back_end", ["segment", "dense"])
@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_packed_tokens_score_as_padded_rows_do(fields, back_end, shares):
    policy = tiny_policy(**fields)
    plain, network = make_network(policy), make_network(policy, packed_attention=back_end)
    ids, mask = padded(SHARED_ROWS, (1, 3, 2, 1))
    for mode in ("detached", "grad"):
        weights = torch.linspace(-1, 1, mask.numel()).reshape(mask.shape)
        expected = plain(ids, mask, 0.7, mode)
        found = network(ids, mask, 0.7, mode, packed=packed(ids, mask, shares_prefixes=shares))
        torch.testing.assert_close(found.logprobs, expected.logprobs, **CLOSE)
        torch.testing.assert_close(found.entropies, expected.entropies, **CLOSE)
        assert found.entropies.requires_grad == expected.entropies.requires_grad
        grads = []
        for each, scores in ((plain, expected), (network, found)):
            each.zero_grad()
            ((scores.logprobs + 0.5 * scores.entropies) * weights).sum().backward()
            grads.append(flat(parameter.grad for parameter in each.parameters()))
        # 40 roundings of float32: in which order sums are taken depends on the CPU.
        assert relative_l2(grads[1], grads[0]) < 5e-6


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_an_empty_packed_micro_batch_reaches_every_parameter_with_a_zero(is_tied):
    network = make_network(tiny_policy(tie_word_embeddings=is_tied))
    ids, mask = torch.zeros(1, 2, dtype=torch.long), torch.tensor([[False]])
    scores = network(ids, mask, packed=pack_rows(ids, torch.tensor([0]), mask))
    scores.logprobs.sum().backward()
    found = flat(parameter.grad for parameter in network.parameters())
    assert found.numel() == sum(parameter.numel() for parameter in network.parameters())
    assert not found.any()


def test_padded_rows_score_bit_for_bit_the_same_before_and_after_packed_ones():
    network = make_network()
    ids, mask = padded(SHARED_ROWS, (1, 3, 2, 1))
    before, expected = network(ids, mask), gradients(network, ids, mask)
    network(ids, mask, packed=packed(ids, mask))
    after, found = network(ids, mask), gradients(network, ids, mask)
    assert torch.equal(before.logprobs, after.logprobs)
    assert torch.equal(expected, found)


def test_the_log_names_the_back_end_of_each_kind_of_batch_once(caplog):
    network = make_network()
    ids, mask = padded(SHARED_ROWS, (1, 3, 2, 1))
    with caplog.at_level("INFO", "aepo_lightning.policy.packed"):
        network(ids, mask)
        assert not caplog.messages
        for shares in (True, False, True, False):
            network(ids, mask, packed=packed(ids, mask, shares_prefixes=shares))
    assert caplog.messages == [
        "Packed batches (tree) run on the 'segment' attention back end.",
        "Packed batches (flat) run on the 'segment' attention back end.",
    ]


def logprobs_by_transformers(model, ids, temperature=1.0):
    log_p = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[:, :-1].double() / temperature, -1)
    return log_p.gather(-1, ids[:, 1:, None])[..., 0].float()


NOISY = {
    "qwen3": {"attention_dropout": 0.5},
    "seed_oss": {"model_type": "seed_oss", "attention_dropout": 0.5, "residual_dropout": 0.5, "head_dim": 8},
    "phimoe": {"model_type": "phimoe", "num_local_experts": 4, "router_jitter_noise": 0.3, "input_jitter_noise": 0.3},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "router_jitter_noise": 0.3},
    "phi": {"model_type": "phi", "resid_pdrop": 0.5, "embd_pdrop": 0.5},
}


@pytest.mark.parametrize("fields", NOISY.values(), ids=NOISY)
def test_training_mode_computes_without_dropout_and_router_noise(fields):
    policy = with_head_bias(tiny_policy(**fields))
    ids = torch.tensor([[5, 9, 17, 30, 31, 8, 99, 120]])
    mask = torch.ones(1, 7, dtype=torch.bool)
    expected = logprobs_by_transformers(policy.build_model().eval(), ids)
    network = PolicyNetwork(policy.build_model())  # a new model is in training mode
    torch.testing.assert_close(network(ids, mask).logprobs, expected, **CLOSE)
    torch.testing.assert_close(network.train()(ids, mask).logprobs, expected, **CLOSE)
    assert network.training


def test_a_model_without_noise_is_in_training_mode_altogether():
    assert all(module.training for module in make_network().train().modules())


def test_a_cap_of_attention_scores_is_computed():
    policy = tiny_policy(model_type="gemma2", head_dim=8, attn_logit_softcapping=0.3, sliding_window=64)
    ids = torch.tensor([[5, 9, 17, 30, 31, 8, 99, 120]])
    mask = torch.ones(1, 7, dtype=torch.bool)
    model = policy.build_model()
    by_sdpa = logprobs_by_transformers(model, ids)  # which transformers picks, and which drops the cap
    found = PolicyNetwork(model)(ids, mask).logprobs
    model = policy.build_model()
    model.set_attn_implementation("eager")
    torch.testing.assert_close(found, logprobs_by_transformers(model, ids), **CLOSE)
    assert (found - by_sdpa).abs().max() > 0.1
