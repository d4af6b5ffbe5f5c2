"""The tokens of an optimiser step as micro-batches, split in any way."""

import torch

from aepo_lightning.contracts.batch import TrajectoryBatch


def make_rows(num_rows=8, width=12, seed=0):
    """Random numbers for every token; lengths, masks and groups differ from row to row."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, width + 2, (num_rows,), generator=generator)
    inside = torch.arange(width)[None] < lengths[:, None] - 1
    numbers = torch.rand(4, num_rows, width, generator=generator)
    return {
        "input_ids": torch.randint(3, 20, (num_rows, width + 1), generator=generator),
        "lengths": lengths,
        "response_mask": inside & (numbers[0] < 0.7),
        "old_logprobs": -3 * numbers[1],
        "old_entropies": 2 * numbers[2],
        "advantages": torch.randn(num_rows, 1, generator=generator) * (1 + numbers[3]),
        "group_index": torch.arange(num_rows) // 2,
    }


def as_batch(rows, chosen):
    """Some of the rows as one micro-batch, with NaN in every number outside the mask."""
    picked = {name: values[chosen] for name, values in rows.items()}
    mask = picked["response_mask"]
    for name in ("old_logprobs", "old_entropies"):
        picked[name] = picked[name].masked_fill(~mask, torch.nan)
    picked["advantages"] = picked["advantages"].masked_fill(~mask, 0.0)
    zeros = torch.zeros(mask.shape)
    return TrajectoryBatch(
        sampler_logprobs=zeros,
        sampler_entropies=zeros,
        rewards=torch.zeros(len(mask)),
        sequence_advantages=torch.zeros(len(mask)),
        **picked,
    )


def split(rows, *parts):
    """The rows as micro-batches of the given row numbers."""
    return [as_batch(rows, torch.tensor(part)) for part in parts]


def by_row(answers, *parts):
    """What was answered for each micro-batch, back in the order of the rows."""
    order = torch.tensor([row for part in parts for row in part])
    return torch.cat(answers)[order.argsort()]


WHOLE = [list(range(8))]
PARTS = [[5, 0], [7], [1, 2, 6], [3, 4]]
