"""One CPU thread for each test and each process it starts: several on two cores would slow each other down."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Tests that fork ranks run first: vLLM leaves a process group behind, which forked ranks would inherit."""
    items.sort(key=lambda item: not item.get_closest_marker("distributed"))
