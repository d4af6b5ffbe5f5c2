"""The random generators of every rank: torch on CPU and GPU, Python, NumPy.

Rollouts do not draw from them: their seeds derive from the question and the iteration. Dropout, a user's callback or
a user's task may.
"""

import random
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from aepo_lightning.distributed.collectives import all_gather


def random_states() -> list[dict[str, Any]]:
    """Return the generators of every rank, in the order of ranks, as values that `weights_only` loading accepts.

    Collective: Lightning stores what is no tensor from rank 0 only, so rank 0 must know the states of all.
    """
    name, keys, *rest = np.random.get_state(legacy=True)
    own: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
    }
    # To ask for the state of a GPU would set it up, also in a run that has no use for it.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        own["cuda"] = torch.cuda.get_rng_state()
    return all_gather(own)


def restore_random_states(states: Sequence[Mapping[str, Any]], rank: int, num_ranks: int) -> None:
    """Put the generators of this rank back.

    Args:
        states: What `random_states` returned.
        rank: Of this process.
        num_ranks: Processes of this run. If it is another number than that of the states, each rank gets a seed of its
            own that derives from them.
    """
    if num_ranks != len(states):
        _seed(int.from_bytes(blake2b(_bytes(states[0]) + bytes([rank % 256]), digest_size=4).digest(), "big"))
        return
    own = states[rank]
    torch.set_rng_state(own["torch"].cpu())
    random.setstate(own["python"])
    name, keys, *rest = own["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in own and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"].cpu())


def _bytes(state: Mapping[str, Any]) -> bytes:
    found: bytes = state["torch"].cpu().numpy().tobytes()
    return found


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
