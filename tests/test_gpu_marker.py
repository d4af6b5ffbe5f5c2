"""Tests marked `gpu` are left out where nothing can run them, and run where they are told to."""

from types import SimpleNamespace

import pytest
import torch

from tests.conftest import without_gpu_tests


@pytest.mark.parametrize(
    ("device", "has_gpu", "kept"),
    [("cuda", False, ["plain"]), ("cuda", True, ["plain", "marked"]), ("cpu", False, ["plain", "marked"])],
    ids=["no gpu", "a gpu", "tried on a cpu"],
)
def test_tests_for_gpus_run_where_they_can(monkeypatch, device, has_gpu, kept):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    deselected = []
    hook = SimpleNamespace(pytest_deselected=lambda items: deselected.extend(items))
    config = SimpleNamespace(getoption=lambda _: device, hook=hook)
    items = [
        SimpleNamespace(name=name, get_closest_marker=lambda _, name=name: name == "marked")
        for name in ("plain", "marked")
    ]
    assert [item.name for item in without_gpu_tests(config, items)] == kept
    assert [item.name for item in deselected] == [name for name in ("plain", "marked") if name not in kept]
