"""What a capture does around its graph, with torch's CUDA functions replaced by notes."""

from contextlib import contextmanager

import pytest
import torch

from aepo_lightning.engines.transformers.cuda_graphs import GraphCapture


@pytest.fixture
def notes(monkeypatch):
    """What was asked of CUDA, in order."""
    found = []

    class Stream:
        def wait_stream(self, _):
            pass

    class Graph:
        def replay(self):
            found.append("replay")

    @contextmanager
    def entered(name):
        found.append(name)
        yield
        found.append(f"end of {name}")

    for name, value in {
        "graph_pool_handle": lambda: None,
        "Stream": lambda *_: Stream(),
        "device": lambda *_: entered("device"),
        "current_stream": lambda *_: Stream(),
        "stream": lambda *_: entered("warm-up"),
        "CUDAGraph": Graph,
        "graph": lambda *_, **__: entered("capture"),
        "set_stream": lambda *_: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: found.append("workspaces"), raising=False)
    return found


def test_workspaces_of_a_graph_are_its_own(notes):
    result = torch.zeros(1)
    replay = GraphCapture(torch.device("cuda"))(lambda: notes.append("step") or result)
    assert notes == [
        "device",
        *("warm-up", "step", "end of warm-up"),
        "workspaces",  # those of the warm-up are not the graph's
        *("capture", "step", "end of capture"),
        "workspaces",  # those of the graph are nobody else's
        "end of device",
    ]
    assert replay() is result
    assert notes[-1] == "replay"


def test_workspaces_are_forgotten_where_a_capture_fails(notes):
    def step():
        notes.append("step")
        if "capture" in notes:
            raise RuntimeError("it asks the host")

    with pytest.raises(RuntimeError, match="it asks the host"):
        GraphCapture(torch.device("cuda"))(step)
    assert notes[-2:] == ["step", "workspaces"]
