"""Every back end computes softmax attention over the path of each token, in value and gradient."""

import inspect
from itertools import pairwise
from random import Random

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from aepo_lightning.ops.tree_attention import (
    QueryKind,
    VarlenAttention,
    build_attention,
    dense_mask,
    flex_mask,
    pick_back_end,
    why_not_varlen,
)
from aepo_lightning.ops.tree_packing import pack_rows
from tests.ops.test_tree_packing import padded

SCALE = 0.3


def random_rows(seed=0, num_rows=7, longest=90):
    """Rows that leave an earlier row somewhere; some longer than the blocks of the kernels."""
    random = Random(seed)
    rows = [[random.randrange(9) for _ in range(longest)]]
    for _ in range(num_rows - 1):
        trunk = random.choice(rows)
        rows.append(
            trunk[: random.randint(0, len(trunk))] + [random.randrange(9) for _ in range(random.randint(1, 40))]
        )
    return rows


def packed_of(rows, shares_prefixes=True):
    return pack_rows(*padded(rows), shares_prefixes=shares_prefixes)


def make_inputs(packed, dtype=torch.float64, heads=4, kv_heads=2, dim=8):
    generator = torch.Generator().manual_seed(0)
    size = len(packed.input_ids)
    shapes = [(1, heads, size, dim), (1, kv_heads, size, dim), (1, kv_heads, size, dim), (1, heads, size, dim)]
    tensors = [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in tensors[:3]], tensors[3]


def by_definition(packed, query, key, value):
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, 1).transpose(-1, -2) * SCALE
    scores = scores.masked_fill(~dense_mask(packed), -torch.inf)
    return torch.softmax(scores, -1) @ value.repeat_interleave(groups, 1)


def results(attend, packed, dtype=torch.float64, **shape):
    inputs, weights = make_inputs(packed, dtype, **shape)
    out = attend(*inputs)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]


def attention(packed, back_end):
    built = build_attention(packed, back_end)
    return lambda query, key, value: built(query, key, value, SCALE)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("shares", [True, False], ids=["tree", "flat"])
@pytest.mark.parametrize("back_end", ["segment", "dense"])
def test_equals_the_definition_in_value_and_gradient(back_end, shares, kv_heads):
    for seed in range(4):
        packed = packed_of(random_rows(seed), shares)
        found = results(attention(packed, back_end), packed, kv_heads=kv_heads)
        expected = results(lambda *inputs, packed=packed: by_definition(packed, *inputs), packed, kv_heads=kv_heads)
        for one, other in zip(found, expected, strict=True):
            # Float64 sums of at most 130 terms.
            torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


# Sums in another order; bfloat16 keeps eight bits of every part that is merged.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_runs_lose_no_precision(dtype, tolerance):
    packed = packed_of(random_rows())
    found = results(attention(packed, "segment"), packed, dtype)
    expected = results(lambda *inputs: by_definition(packed, *inputs), packed)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert float((one - other).norm() / other.norm()) < tolerance


def test_transposed_inputs_give_the_same():
    # Transformers passes views of [batch, seq, heads, dim].
    packed = packed_of(random_rows())
    attend = attention(packed, "segment")

    def transposed(*inputs):
        return attend(*(tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in inputs))

    for one, other in zip(results(transposed, packed), results(attend, packed), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_what_no_path_holds_changes_nothing():
    rows = [[1, 2, 3, 4], [1, 2, 5, 6, 7]]
    packed = packed_of(rows)
    (query, key, value), _ = make_inputs(packed)
    attend = attention(packed, "segment")
    expected = attend(query, key, value).detach()
    # Tokens 3 and 4 of the first row, which the second does not see.
    with torch.no_grad():
        key[:, :, 2:4] = 1e3
        value[:, :, 2:4] = 1e3
    assert torch.equal(attend(query, key, value)[:, :, 4:], expected[:, :, 4:])
    assert torch.equal(attend(query, key, value)[:, :, :2], expected[:, :, :2])


@pytest.mark.parametrize("shares", [True, False], ids=["tree", "flat"])
def test_the_flex_mask_is_the_dense_mask(shares):
    packed = packed_of(random_rows(), shares)
    size = len(packed.input_ids)
    mask = create_mask(flex_mask(packed).mask_mod, None, None, size, size, device="cpu")
    assert torch.equal(mask[0, 0], dense_mask(packed))


@pytest.mark.parametrize("longest", [60, 128, 400])
@pytest.mark.parametrize("shares", [True, False], ids=["tree", "flat"])
def test_the_blocks_of_the_flex_mask_are_those_that_hold_a_visible_pair(shares, longest):
    packed = packed_of(random_rows(seed=longest, num_rows=9, longest=longest), shares)
    mask, size = flex_mask(packed), len(packed.input_ids)
    expected = create_block_mask(mask.mask_mod, None, None, size, size, device="cpu")
    assert torch.equal(mask.to_dense(), expected.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(mask, name), getattr(expected, name))
    for name in ("kv_indices", "full_kv_indices"):
        assert torch.equal(getattr(mask, name), getattr(expected, name))
    assert mask.seq_lengths == (size, size)


class Largest(TorchDispatchMode):
    """The most numbers that any tensor has had."""

    numel = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            self.numel = max(self.numel, tensor.numel()) if isinstance(tensor, torch.Tensor) else self.numel
        return result


def test_the_flex_mask_is_built_without_a_mask_of_all_pairs():
    packed = packed_of(random_rows(num_rows=9, longest=400))
    with Largest() as largest:
        flex_mask(packed)
    assert 0 < largest.numel < 2 * len(packed.input_ids)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_flex_kernel_reads_its_block_mask_as_meant():
    # Blocks of 128 tokens, some of them empty. There is no backward pass on a CPU, and compilation takes seconds.
    packed = packed_of(random_rows(num_rows=12, longest=400))
    (query, key, value), _ = make_inputs(packed, dim=16)
    mask = flex_mask(packed)
    assert mask.sparsity() > 0
    query, key, value = (tensor.detach() for tensor in (query, key, value))
    found = flex_attention(query, key, value, block_mask=mask, scale=SCALE, enable_gqa=True)
    torch.testing.assert_close(found, by_definition(packed, query, key, value), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("shares", [True, False], ids=["tree", "flat"])
def test_devices_get_the_back_end_that_they_have(shares):
    packed = packed_of([[1, 2, 3], [1, 2, 4]], shares)
    for device, expected in {"cpu": "segment", "meta": "dense"}.items():
        query = torch.empty(1, 4, 6, 8, device=device)
        assert pick_back_end(packed, QueryKind.of(query)) == expected


ON_GPU = QueryKind(torch.device("cuda"), torch.bfloat16, 128)


@pytest.fixture
def capability(monkeypatch):
    """Sets what the GPU can do that this machine may not have."""

    def set_capability(found):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: found)

    set_capability((9, 0))
    return set_capability


def test_flat_rows_get_varlen_and_trees_get_flex_on_a_gpu(capability):
    rows = [[1, 2, 3], [1, 2, 4]]
    assert pick_back_end(packed_of(rows, shares_prefixes=False), ON_GPU) == "varlen"
    assert pick_back_end(packed_of(rows), ON_GPU) == "flex"
    # Rows that have nothing in common are flat, whatever was asked for.
    assert pick_back_end(packed_of([[1, 2, 3], [4, 5]]), ON_GPU._replace(dtype=torch.float16)) == "varlen"


@pytest.mark.parametrize(
    ("kind", "capable", "why"),
    [
        (ON_GPU._replace(dtype=torch.float32), (9, 0), "bfloat16 or float16, but the layers compute in float32"),
        (ON_GPU._replace(head_dim=12), (9, 0), "a multiple of 8 up to 256, but these have 12"),
        (ON_GPU._replace(head_dim=264), (9, 0), "a multiple of 8 up to 256, but these have 264"),
        (ON_GPU, (7, 5), "compute capability 8.0"),
    ],
    ids=["float32", "odd heads", "wide heads", "old gpu"],
)
def test_what_flash_attention_cannot_run_falls_back_to_flex_and_says_why(capability, kind, capable, why):
    capability(capable)
    assert pick_back_end(packed_of([[1, 2, 3], [1, 2, 4]], shares_prefixes=False), kind) == "flex"
    assert why in why_not_varlen(kind)


def varlen_reference(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """What torch's `varlen_attn` promises, sequence by sequence."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert (window_size, enable_gqa) == ((-1, 0), True)
    assert all(tensor.ndim == 3 and tensor.shape[0] == int(cu_seq_q[-1]) for tensor in (query, key, value))
    bounds = list(pairwise(cu_seq_q.tolist()))
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert max_q == max_k == max(stop - start for start, stop in bounds)
    outs = []
    for start, stop in bounds:
        rows = [tensor[start:stop].transpose(0, 1)[None] for tensor in (query, key, value)]
        out = scaled_dot_product_attention(*rows, is_causal=True, scale=scale, enable_gqa=True)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_varlen_gets_whole_trajectories_in_the_layout_that_it_reads(kv_heads):
    for seed in range(4):
        packed = packed_of(random_rows(seed), shares_prefixes=False)
        built = VarlenAttention(packed, varlen_reference)
        found = results(lambda *inputs, built=built: built(*inputs, SCALE), packed, kv_heads=kv_heads)
        expected = results(lambda *inputs, packed=packed: by_definition(packed, *inputs), packed, kv_heads=kv_heads)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def older_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size):
    """The function of torch 2.11, which shares key heads without being asked."""
    return varlen_reference(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size, enable_gqa=True
    )


def test_varlen_asks_for_shared_heads_only_where_torch_knows_the_word():
    packed = packed_of(random_rows(), shares_prefixes=False)
    inputs, _ = make_inputs(packed)
    found = [VarlenAttention(packed, attend)(*inputs, SCALE) for attend in (varlen_reference, older_varlen)]
    assert torch.equal(*found)


def test_varlen_is_called_as_torch_defines_it():
    own = list(inspect.signature(varlen_reference).parameters)
    torchs = list(inspect.signature(varlen_attn).parameters)
    assert torchs[:7] == own[:7]
    assert set(own) - {"enable_gqa"} <= set(torchs)


def test_torch_takes_what_varlen_passes_and_gives_gradients_of_its_shapes():
    # Tensors without values go through torch's own checks and shapes; a CPU has no kernel for them.
    packed = packed_of(random_rows(), shares_prefixes=False)
    built = VarlenAttention(packed.to("meta"))
    inputs, weights = make_inputs(packed, torch.bfloat16)
    inputs = [tensor.detach().to("meta").requires_grad_() for tensor in inputs]
    out = built(*inputs, SCALE)
    assert out.shape == weights.shape
    grads = torch.autograd.grad(out, inputs, weights.to("meta"))
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in inputs]


def test_varlen_refuses_a_tree():
    with pytest.raises(ValueError, match="without shared tokens"):
        build_attention(packed_of([[1, 2, 3], [1, 2, 4]]), "varlen")


@pytest.mark.gpu
def test_flash_attention_trains_as_the_dense_mask_does(gpu_device):
    fast = "varlen" if gpu_device == "cuda" else "segment"
    for seed in range(2):
        packed = packed_of(random_rows(seed, num_rows=12, longest=400), shares_prefixes=False).to(gpu_device)
        inputs, weights = make_inputs(packed, torch.bfloat16, dim=16)
        found = {}
        for back_end, dtype in ((fast, torch.bfloat16), ("dense", torch.float32)):
            on_device = [tensor.detach().to(gpu_device, dtype).requires_grad_() for tensor in inputs]
            out = attention(packed, back_end)(*on_device)
            loss = (out * weights.to(gpu_device, dtype)).sum()
            found[back_end] = [out.detach(), *torch.autograd.grad(loss, on_device)]
        for one, other in zip(found[fast], found["dense"], strict=True):
            # bfloat16 keeps eight bits.
            assert float((one.float() - other).norm() / other.norm()) < 1e-2


def test_an_unknown_back_end_is_refused():
    with pytest.raises(
        ValueError, match=r"`back_end` must be one of \['dense', 'flex', 'segment', 'varlen'\], but got 'fast'"
    ):
        build_attention(packed_of([[1, 2]]), "fast")


@pytest.mark.gpu
def test_the_compiled_flex_kernel_trains_as_the_dense_mask_does(gpu_device):
    fast = "flex" if gpu_device == "cuda" else "segment"
    for seed in range(2):
        packed = packed_of(random_rows(seed, num_rows=12, longest=400)).to(gpu_device)
        inputs, weights = make_inputs(packed, torch.float32, dim=16)
        found = {}
        for back_end in (fast, "dense"):
            on_device = [tensor.detach().to(gpu_device).requires_grad_() for tensor in inputs]
            out = attention(packed, back_end)(*on_device)
            found[back_end] = [out.detach(), *torch.autograd.grad((out * weights.to(gpu_device)).sum(), on_device)]
        for one, other in zip(found[fast], found["dense"], strict=True):
            # Tensor cores may round float32 products to ten bits.
            assert float((one - other).norm() / other.norm()) < 3e-3
