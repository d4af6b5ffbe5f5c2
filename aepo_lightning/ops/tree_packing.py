"""Trajectories that share prefixes as one row of tokens, each shared prefix once.

Sorted by their tokens, trajectories stand in the order of a walk through their prefix tree. Each adds to the row what
it does not share with the one before it: one run of tokens, its piece. All structure follows from the lengths of the
trajectories and of those shared prefixes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from aepo_lightning.contracts.batch import AttentionBlock, PackedTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """What one trajectory adds to the row."""

    depth: int
    """Tokens that it shares with the trajectory before it."""
    start: int
    stop: int


def pack_rows(
    input_ids: Int[Tensor, "batch seq"],
    lengths: Int[Tensor, " batch"],
    response_mask: Bool[Tensor, "batch response"],
    *,
    shares_prefixes: bool = True,
) -> PackedTokens:
    """Pack right-padded rows.

    Args:
        input_ids: Tokens; column `t` of the mask speaks about column `t + 1`.
        lengths: Tokens of each row. Of an empty row one token of padding is packed, so that there is something to run.
        response_mask: True where the predicted token is trained.
        shares_prefixes: Whether equal prefixes are stored once, or every row whole.
    """
    rows = [ids[: max(1, length)] for ids, length in zip(input_ids, lengths.tolist(), strict=True)]
    order = preorder([row.tolist() for row in rows]) if shares_prefixes else list(range(len(rows)))
    depths = shared_lengths([rows[index] for index in order]) if shares_prefixes else [0] * len(rows)
    pieces: list[_Piece] = []
    paths: dict[int, Tensor] = {}
    subtree_end = torch.empty(sum(map(len, rows)), dtype=torch.long)
    path, size = torch.empty(0, dtype=torch.long), 0
    for index, depth in zip(order, depths, strict=True):
        subtree_end[path[depth:]] = size
        stop = size + len(rows[index]) - depth
        path = torch.cat([path[:depth], torch.arange(size, stop)])
        pieces.append(_Piece(depth=depth, start=size, stop=stop))
        paths[index], size = path, stop
    subtree_end[path] = size
    own = [(rows[index][piece.depth :], piece) for index, piece in zip(order, pieces, strict=True)]
    ids = torch.cat([tokens for tokens, _ in own])
    sources, targets, scored_index = _scored([paths[index] for index in range(len(rows))], response_mask, ids)
    return PackedTokens(
        input_ids=ids,
        position_ids=torch.cat([torch.arange(piece.depth, piece.depth + len(tokens)) for tokens, piece in own]),
        subtree_end=subtree_end[:size],
        sources=sources,
        targets=targets,
        scored_index=scored_index,
        blocks=tuple(_blocks(pieces)),
    )


def preorder(rows: Sequence[list[int]]) -> list[int]:
    """Return the indices of token lists in the order of a walk through their prefix tree, a prefix before its heirs."""
    return sorted(range(len(rows)), key=lambda index: rows[index])


def shared_lengths(rows: Sequence[Int[Tensor, " _"]]) -> list[int]:
    """Return how many leading tokens each row shares with the row before it, 0 for the first."""
    return [0, *[_shared_length(*pair) for pair in pairwise(rows)]][: len(rows)]


def _shared_length(first: Int[Tensor, " _"], second: Int[Tensor, " _"]) -> int:
    width = min(len(first), len(second))
    differ = (first[:width] != second[:width]).nonzero()
    return int(differ[0]) if len(differ) else width


def _blocks(pieces: Sequence[_Piece]) -> list[AttentionBlock]:
    """Return attention as runs: each piece within itself, then each piece from what hangs below it.

    Pieces that leave an earlier piece at the same depth and follow each other are one run of queries.
    """
    blocks = [AttentionBlock(p.start, p.stop, p.start, p.stop, True) for p in pieces if p.start < p.stop]
    for index, trunk in enumerate(pieces):
        visible = trunk.stop - trunk.start
        found: list[AttentionBlock] = []
        for piece in pieces[index + 1 :]:
            visible = min(visible, piece.depth - trunk.depth)
            if visible <= 0:
                break
            keys = (trunk.start, trunk.start + visible)
            if found and found[-1][2:4] == keys:
                found[-1] = found[-1]._replace(query_stop=piece.stop)
            else:
                found.append(AttentionBlock(piece.start, piece.stop, *keys, False))
        blocks += [block for block in found if block.query_start < block.query_stop]
    return blocks


def _scored(
    paths: Sequence[Int[Tensor, " _"]], response_mask: Bool[Tensor, "batch response"], ids: Int[Tensor, " seq"]
) -> tuple[Int[Tensor, " _"], Int[Tensor, " _"], Int[Tensor, " _"]]:
    """Return sources and targets of the trained tokens, each once, and which of them each True of the mask is."""
    masks = [mask[: len(path) - 1] for mask, path in zip(response_mask, paths, strict=True)]
    tokens = torch.cat([path[1:][mask] for path, mask in zip(paths, masks, strict=True)])
    before = torch.cat([path[:-1][mask] for path, mask in zip(paths, masks, strict=True)])
    unique, scored_index = torch.unique(tokens, return_inverse=True)
    source_of = torch.zeros(len(ids), dtype=torch.long)
    source_of[tokens] = before
    return source_of[unique], ids[unique], scored_index
