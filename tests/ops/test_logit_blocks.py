import pytest
import torch

from aepo_lightning.ops.logit_blocks import MOST_ROWS, BlockShape, Products, RunningSums, chunk_rows, slices


@pytest.mark.parametrize("num_tokens", [0, 1, 7, 4096, 30000])
@pytest.mark.parametrize("num_words", [1, 29, 151936])
@pytest.mark.parametrize("num_logits", [1, 100, 2**22, 2**28])
def test_a_block_holds_no_more_logits_than_allowed_and_at_least_one(num_tokens, num_words, num_logits):
    block = BlockShape.within(num_logits, num_tokens, num_words)
    assert 1 <= block.numel <= num_logits
    assert block.rows <= max(1, min(num_tokens, MOST_ROWS))
    assert block.columns <= num_words


def test_a_block_has_all_tokens_and_words_where_they_fit():
    assert BlockShape.within(30, 5, 6) == BlockShape(rows=5, columns=6)


def test_columns_of_large_blocks_are_whole_cache_lines():
    assert BlockShape.within(1000, 10, 5000).columns == 64
    assert BlockShape.within(1000, 10, 90).columns == 90


@pytest.mark.parametrize(("count", "size"), [(0, 3), (1, 3), (3, 3), (10, 3)])
def test_slices_cover_everything_once_and_in_order(count, size):
    found = slices(count, size)
    assert [index for part in found for index in range(count)[part]] == list(range(count))
    assert all(part.stop - part.start <= size for part in found)


def test_the_order_of_the_words_does_not_matter_to_the_sums():
    logits = torch.tensor([[0.0, 900.0, -900.0, 899.0]], dtype=torch.float64)
    found = []
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)):
        sums = RunningSums(torch.tensor([order.index(3)]), torch.float64, has_entropy=True)
        for position, word in enumerate(order):
            sums.add(logits[:, word : word + 1].clone(), slice(0, 1), slice(position, position + 1))
        found.append(torch.stack([sums.logprobs, sums.log_normalizers, sums.entropies]))
    log_p = torch.log_softmax(logits, -1)
    expected = torch.tensor([[float(log_p[0, 3])], [float(logits.logsumexp(-1))], [float(-(log_p.exp() @ log_p.T))]])
    for sums in found:
        torch.testing.assert_close(sums, expected.double())


def fail_within(products):
    with products.context():
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        _ = 1 / 0


@pytest.mark.parametrize("setting", ["ieee", "bf16"])
def test_rounded_products_leave_the_setting_of_the_process_as_it_was_also_after_an_error(setting):
    products = Products(operand_dtype=torch.float32, result_dtype=torch.float32, rounds_operands=True)
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = setting
        with pytest.raises(ZeroDivisionError, match="division"):
            fail_within(products)
        assert matmul.fp32_precision == setting
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize(
    ("num_words", "rows"), [(1, MOST_ROWS), (268, MOST_ROWS), (16_384, MOST_ROWS), (49_152, 1365), (151_936, 441)]
)
def test_rows_are_as_many_as_a_quarter_of_a_gibibyte_holds(num_words, rows):
    assert chunk_rows("auto", num_words) == rows
    assert 4 * rows * num_words <= 2**28


def test_there_is_always_a_row_and_a_number_is_taken_as_it_is():
    assert chunk_rows("auto", 2**30) == 1
    assert chunk_rows(7, 2**30) == 7
