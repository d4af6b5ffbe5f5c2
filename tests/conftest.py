"""One CPU thread for each test and each process it starts, and the order of tests in one process or in several."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)

WITH_VLLM = (
    "tests/engines/vllm/",
    "tests/engines/vllm_server/",
    "tests/engines/test_adapter_file.py",
    "tests/engines/test_adapters.py",
    "tests/engines/test_protocol.py",
)
ON_RANKS = ("tests/engines/vllm/test_tensor_parallel.py", "tests/engines/vllm_server/test_on_ranks.py")
VLLM = "vllm"


def room(nodeid):
    """What one worker runs from start to end: a file, or all tests that share one vLLM and its server."""
    path = nodeid.partition("::")[0]
    return VLLM if path.startswith(WITH_VLLM) and path not in ON_RANKS else path


def pytest_collection_modifyitems(items):
    """Tests that fork ranks run first: vLLM leaves a process group behind, which forked ranks would inherit.

    Workers take rooms in this order, so it holds for each of them. The longest room comes next, the rest fills up.
    """
    items.sort(key=lambda item: (not item.get_closest_marker("distributed"), room(item.nodeid) != VLLM))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hand out rooms in the order of the tests, whatever `--dist` says."""
    from xdist.scheduler import LoadScopeScheduling

    class ByRoom(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return room(nodeid)

    config.option.loadscopereorder = False
    return ByRoom(config, log)
