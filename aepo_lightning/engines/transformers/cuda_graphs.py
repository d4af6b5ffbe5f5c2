"""When decoding steps run as CUDA graphs, and how one is captured.

A model of thirty layers launches over a thousand kernels for each token. Launched one by one they take the host longer
than the device, whatever the batch; a graph launches them at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aepo_lightning.engines.transformers.static_decoding import Capture, Step
from aepo_lightning.errors import ConfigError


def choose_capture(cuda_graphs: str | bool, device: torch.device) -> Capture | None:
    """Return how steps are captured, or None if they are not.

    Args:
        cuda_graphs: `auto` captures on CUDA, and so does true, which insists on it.
        device: Where the engine computes.

    Raises:
        ConfigError: If the setting has no meaning, or insists on graphs for another device.
    """
    if cuda_graphs not in ("auto", True, False):
        raise ConfigError(f"`cuda_graphs` must be auto, true or false, but got {cuda_graphs!r}.")
    if cuda_graphs is True and device.type != "cuda":
        raise ConfigError(f"`cuda_graphs` must be auto or false on {device.type!r}, but got true. Set `device=cuda`.")
    return GraphCapture(device) if cuda_graphs and device.type == "cuda" else None


def why_not_captured(model: PreTrainedModel) -> str | None:
    """Return what keeps a model's decoding steps from being captured, or None if nothing is known to.

    A captured step launches the same kernels whatever the numbers are, so nothing may be decided by them on the host.
    """
    config = model.config.get_text_config()
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if (getattr(config, name, None) or 0) > 1:
            return f"its routers choose among {getattr(config, name)} experts on the host"
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type"), *(part.get("rope_type") for part in rope.values() if isinstance(part, dict))}
    if moving := kinds & {"dynamic", "longrope"}:
        return f"its rotary embeddings ({moving.pop()}) follow the longest sequence"
    return None


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Let matrix products of a graph take their workspaces from its pool, where they stay as long as the graph.

    Others belong to the process, and Lightning gives them back to the driver whenever a trainer ends; a graph that goes
    on to use their addresses is an error that no later call survives.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


class GraphCapture:
    """Captures steps that share one pool of memory, since only one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        """Reserve pool and stream on a device."""
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, step: Step) -> Step:
        """Return a step that replays what `step` launches and gives the same tensor every time."""
        with torch.cuda.device(self._device):
            self._warm_up(step)
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            try:
                # Other threads may allocate meanwhile: an update that runs beside the rollouts.
                with (
                    _own_workspaces(),
                    torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
                ):
                    result = step()
            finally:
                torch.cuda.set_stream(stream)  # torch leaves its own in place where a capture fails

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    def _warm_up(self, step: Step) -> None:
        """Run once outside of a graph, where libraries may still set themselves up."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            step()
        torch.cuda.current_stream().wait_stream(self._stream)
