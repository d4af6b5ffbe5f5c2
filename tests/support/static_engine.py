"""Embedded engines whose decoding steps have a fixed shape, on a CPU."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from aepo_lightning.engines import TransformersEngine
from aepo_lightning.engines.transformers import engine as module


def run_again(step):
    """Capture nothing: run the step each time."""
    return step


def traced(step):
    """Record the operations of a step with the tensors they read and write, as a CUDA graph does, and run only them.

    Whatever Python decides is decided once, and asking a tensor for its value is an error.
    """
    graph = make_fx(step)()
    return lambda: graph()


def static_engine(monkeypatch, policy, capture=run_again, cuda_graphs="auto", **settings):
    """An engine that captures its steps by `capture`."""
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(module, "choose_capture", lambda *_: capture)
        sizes = {"max_num_seqs": 8, "max_model_len": 64} | settings
        return TransformersEngine(policy, cuda_graphs=cuda_graphs, **sizes)
