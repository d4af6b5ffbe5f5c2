"""How much memory the processes of one node need outside of their GPUs."""

from dataclasses import dataclass

from aepo_lightning.app.plan.input import PlanInput
from aepo_lightning.app.plan.model_size import BF16, GIB, ModelSize
from aepo_lightning.app.plan.update_memory import UpdateMemory

PROCESS_BYTES = 4 * GIB
"""Of Python, the libraries and the host side of CUDA."""
TRAJECTORY_BYTES = 150
"""Of one token of a finished trajectory: id, log-prob, entropy and flag as Python objects in lists, and the tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLine:
    """One consumer of host memory on one node."""

    name: str
    num_bytes: int
    formula: str


def host_lines(size: ModelSize, settings: PlanInput) -> tuple[HostLine, ...]:
    """Return what the processes of one node hold beside their GPUs, at most. Nothing where there are no GPUs.

        processes         4 GiB each            Python, libraries, the host side of CUDA
        loading           2Vh/N or wP each      rows of the largest tensor, read at once; the whole model where it is
                                                not read in shards
        offloaded         4wP/N each            weights, gradients, two states
        sleeping engine   2P/tp each            its weights, at sleep level 1
        trajectories      150 bytes a token     of one iteration, over all ranks

    Checkpoints and exports are written weight by weight, from buffers that are freed on the way.
    """
    if not settings.is_gpu:
        return ()
    ranks = min(settings.gpus_per_node, settings.num_gpus)
    own = UpdateMemory(size, settings)
    tokens = settings.questions_per_iteration * settings.group_size * settings.max_trajectory_tokens
    lines = (
        ("processes", ranks * PROCESS_BYTES, "4 GiB each"),
        ("loading", ranks * _loading(size, settings), _loading_formula(settings)),
        ("offloaded states", ranks * own.offloaded_bytes(), "4wP/N each"),
        ("sleeping engine", ranks * _asleep(size, settings), "2P/tp each"),
        ("trajectories", TRAJECTORY_BYTES * tokens * ranks // settings.num_gpus, "150 bytes per token"),
    )
    return tuple(HostLine(name=name, num_bytes=count, formula=text) for name, count, text in lines if count)


def _is_read_in_shards(settings: PlanInput) -> bool:
    return settings.is_pretrained and settings.sharding in ("fsdp2", "fsdp1")


def _loading(size: ModelSize, settings: PlanInput) -> int:
    if not _is_read_in_shards(settings):
        return settings.weight_bytes * size.num_parameters
    return -(-BF16 * size.vocab_size * size.hidden_size // settings.num_gpus)


def _loading_formula(settings: PlanInput) -> str:
    return "2Vh/N each" if _is_read_in_shards(settings) else "wP each, built whole"


def _asleep(size: ModelSize, settings: PlanInput) -> int:
    is_kept = settings.engine_keeps_weights and settings.has_engine
    return settings.engine_number_bytes * size.num_parameters // settings.engine_tensor_parallel * is_kept
