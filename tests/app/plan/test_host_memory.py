import pytest

from aepo_lightning.app.plan.host_memory import host_lines
from aepo_lightning.app.plan.model_size import GIB, model_size
from tests.support.planning import SMALL, make_settings


def lines(**changes):
    settings = make_settings(gpus_per_node=4, **changes)
    return {line.name: line.num_bytes for line in host_lines(model_size(SMALL), settings)}


@pytest.mark.parametrize(
    ("changes", "name", "expected"),
    [
        ({}, "processes", 16 * GIB),
        # 4 ranks, each a quarter of 2 * 256*64
        ({}, "loading", 32_768),
        # 4 ranks, each 4 * 143776
        ({"is_pretrained": False}, "loading", 2_300_416),
        ({"sharding": "replicated"}, "loading", 2_300_416),
        # 6 questions * 8 * 500 tokens * 150
        ({}, "trajectories", 3_600_000),
        # half of the ranks are on the node
        ({"num_gpus": 8}, "trajectories", 1_800_000),
        # 4 ranks, each 16 * 143776 / 4
        ({"is_cpu_offloaded": True}, "offloaded states", 2_300_416),
        # 4 ranks, each 2 * 143776
        ({"engine_keeps_weights": True}, "sleeping engine", 1_150_208),
        ({"engine_keeps_weights": True, "engine_tensor_parallel": 2}, "sleeping engine", 575_104),
    ],
)
def test_every_line_equals_its_arithmetic(changes, name, expected):
    assert lines(**changes)[name] == expected


def test_lines_that_are_not_used_are_left_out():
    assert set(lines()) == {"processes", "loading", "trajectories"}


def test_on_cpus_everything_is_memory_of_the_device():
    assert lines(is_gpu=False) == {}
