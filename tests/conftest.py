"""One CPU thread for each test and each process it starts, the order of tests, and where those marked `gpu` run."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
import pytest
import torch

from tests.support import type_checks

torch.set_num_threads(1)
type_checks.install()
gc.disable()  # until all files are imported: half a million objects that stay would be looked at again and again

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


def pytest_addoption(parser):
    """Let tests marked `gpu` be tried on a machine without one."""
    parser.addoption(
        "--gpu-device", default="cuda", choices=["cuda", "cpu"], help="where tests marked `gpu` compute (default: cuda)"
    )


@pytest.fixture
def without_type_checks(monkeypatch):
    """Let values through that annotations exclude, as they come from files and commands."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def gpu_device(request):
    """Where a test marked `gpu` computes; `cpu` only tries its code."""
    return request.config.getoption("--gpu-device")


def without_gpu_tests(config, items):
    """Leave out what needs a CUDA device where there is none."""
    if config.getoption("--gpu-device") == "cpu" or torch.cuda.is_available():
        return items
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    config.hook.pytest_deselected(items=left_out)
    return [item for item in items if item not in left_out]


def pytest_collection_modifyitems(config, items):
    """Leave out tests for GPUs where there is none, and sort the others.

    Tests that fork ranks run first: vLLM leaves a process group behind, which forked ranks would inherit.

    Workers take rooms in this order, so it holds for each of them. The longest room comes next, the rest fills up.
    """
    if unstable := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(
            f"Names of tests must be the same in every worker, but got {unstable[0]!r}. Name its parameters by `ids`."
        )
    items[:] = without_gpu_tests(config, items)
    items.sort(key=lambda item: (not item.get_closest_marker("distributed"), room(item.nodeid) != VLLM))


def pytest_collection_finish():
    """Collect garbage again, but leave out what was imported."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hand out rooms in the order of the tests, whatever `--dist` says."""
    from xdist.scheduler import LoadScopeScheduling

    class ByRoom(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return room(nodeid)

    config.option.loadscopereorder = False
    return ByRoom(config, log)
