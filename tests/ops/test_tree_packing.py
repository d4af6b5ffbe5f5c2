"""Packing keeps every trajectory: its tokens, its positions, whom each token sees and where it is predicted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aepo_lightning.ops.tree_attention import dense_mask
from aepo_lightning.ops.tree_packing import pack_rows

# Three letters, so that prefixes are shared, rows are prefixes of others, and rows are equal.
rows_of_tokens = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), min_size=1, max_size=8)


def padded(rows):
    """Right-padded tokens, lengths, and a mask that differs between rows."""
    width = max(2, *map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    columns, lengths = torch.arange(width - 1), torch.tensor([len(row) for row in rows])
    mask = (columns + 1 < lengths[:, None]) & ((columns + torch.arange(len(rows))[:, None]) % 3 > 0)
    return ids, lengths, mask


def prefixes(rows):
    return {tuple(row[: end + 1]) for row in rows for end in range(len(row))}


def path_of(packed, index):
    """Packed indices that a token sees, in order."""
    return dense_mask(packed)[index].nonzero()[:, 0].tolist()


def path_tokens(packed, index):
    return tuple(packed.input_ids[path_of(packed, index)].tolist())


@given(rows=rows_of_tokens)
def test_every_prefix_is_stored_once_at_its_depth_and_sees_itself_only(rows):
    packed = pack_rows(*padded(rows))
    found = [path_tokens(packed, index) for index in range(len(packed.input_ids))]
    assert len(found) == len(set(found))
    assert set(found) == prefixes(rows)
    assert packed.position_ids.tolist() == [len(path) - 1 for path in found]


@given(rows=rows_of_tokens)
def test_without_sharing_rows_stand_one_after_another(rows):
    packed = pack_rows(*padded(rows), shares_prefixes=False)
    assert packed.input_ids.tolist() == [token for row in rows for token in row]
    assert packed.position_ids.tolist() == [depth for row in rows for depth in range(len(row))]
    ends = [sum(map(len, rows[: index + 1])) for index, row in enumerate(rows) for _ in row]
    assert packed.subtree_end.tolist() == ends


@pytest.mark.parametrize("shares", [True, False], ids=["tree", "flat"])
@given(rows=rows_of_tokens)
def test_each_trained_token_is_predicted_from_its_own_prefix(rows, shares):
    ids, lengths, mask = padded(rows)
    packed = pack_rows(ids, lengths, mask, shares_prefixes=shares)
    occurrences = mask.nonzero().tolist()
    assert len(packed.scored_index) == len(occurrences)
    for (row, column), scored in zip(occurrences, packed.scored_index.tolist(), strict=True):
        assert path_tokens(packed, packed.sources[scored]) == tuple(rows[row][: column + 1])
        assert packed.targets[scored] == rows[row][column + 1]
    if shares:
        # A token that several rows train is scored once.
        wanted = {tuple(rows[row][: column + 2]) for row, column in occurrences}
        assert len(packed.targets) == len(wanted)


@pytest.mark.parametrize("shares", [True, False], ids=["tree", "flat"])
@given(rows=rows_of_tokens)
def test_runs_say_the_same_as_the_mask_and_no_pair_twice(rows, shares):
    packed = pack_rows(*padded(rows), shares_prefixes=shares)
    size = len(packed.input_ids)
    seen = torch.zeros(size, size, dtype=torch.long)
    causal = torch.ones(size, size, dtype=torch.long).tril()
    for block in packed.blocks:
        area = (slice(block.query_start, block.query_stop), slice(block.key_start, block.key_stop))
        seen[area] += causal[area] if block.is_causal else 1
    assert torch.equal(seen, dense_mask(packed).long())


@given(rows=rows_of_tokens)
def test_causal_runs_come_first_and_hold_every_token_once(rows):
    packed = pack_rows(*padded(rows))
    kinds = [block.is_causal for block in packed.blocks]
    assert kinds == sorted(kinds, reverse=True)
    causal = [block for block in packed.blocks if block.is_causal]
    held = [index for block in causal for index in range(block.query_start, block.query_stop)]
    assert sorted(held) == list(range(len(packed.input_ids)))
    assert all(block[:2] == block[2:4] for block in causal)
    assert len(causal) <= len(rows)


def test_a_tree_worked_by_hand():
    # 1 2 3 4, 1 2 3 5 and 1 6 share 1 2 3 and 1. The walk is 1 2 3 4 | 5 | 6.
    packed = pack_rows(*padded([[1, 6], [1, 2, 3, 5], [1, 2, 3, 4]]))
    assert packed.input_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 3, 1]
    assert packed.subtree_end.tolist() == [6, 5, 5, 4, 5, 6]
    assert [block[:4] for block in packed.blocks if block.is_causal] == [(0, 4, 0, 4), (4, 5, 4, 5), (5, 6, 5, 6)]
    assert [block[:4] for block in packed.blocks if not block.is_causal] == [(4, 5, 0, 3), (5, 6, 0, 1)]


def test_an_empty_row_runs_one_token_and_scores_none():
    packed = pack_rows(torch.zeros(1, 2, dtype=torch.long), torch.tensor([0]), torch.tensor([[False]]))
    assert packed.input_ids.tolist() == [0]
    assert packed.subtree_end.tolist() == [1]
    assert len(packed.targets) == len(packed.sources) == len(packed.scored_index) == 0


def test_tensors_move_together():
    packed = pack_rows(*padded([[1, 2, 3], [1, 2, 1]])).to("meta")
    assert packed.input_ids.device == packed.scored_index.device == packed.subtree_end.device == torch.device("meta")
    assert packed.blocks == pack_rows(*padded([[1, 2, 3], [1, 2, 1]])).blocks
