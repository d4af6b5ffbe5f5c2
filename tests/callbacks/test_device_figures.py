import torch

from aepo_lightning.callbacks import device_figures
from aepo_lightning.callbacks.device_figures import (
    flops_per_token,
    gpu_memory_gib,
    host_memory_gib,
    model_flops_utilization,
)


def test_memory_of_this_process_is_that_of_the_pages_it_holds(monkeypatch, tmp_path):
    (tmp_path / "statm").write_text("900 300 20 1 0 100 0\n")
    monkeypatch.setattr(device_figures, "_STATM", tmp_path / "statm")
    monkeypatch.setattr(device_figures.os, "sysconf", lambda _: 4096)
    assert host_memory_gib() == {"memory/host_gib": 300 * 4096 / 2**30}
    monkeypatch.setattr(device_figures, "_STATM", tmp_path / "elsewhere")
    assert host_memory_gib() == {}


def test_memory_of_a_gpu_is_its_peak(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: device.index * 2**30)
    assert gpu_memory_gib(torch.device("cuda", 3)) == {"memory/gpu_gib": 3.0}
    assert gpu_memory_gib(torch.device("cpu")) == {}


def test_a_frozen_weight_has_no_gradient_to_compute():
    module = torch.nn.Linear(3, 2, bias=False)
    assert flops_per_token(module) == 36
    module.weight.requires_grad_(False)
    assert flops_per_token(module) == 24


def test_the_share_of_the_peak_by_hand(monkeypatch):
    monkeypatch.setattr(device_figures, "get_available_flops", lambda _, dtype: {torch.bfloat16: 400}.get(dtype))
    gpu = torch.device("cuda", 0)
    assert model_flops_utilization(600.0, gpu, torch.bfloat16, 2) == {"throughput/update_mfu": 0.75}
    assert model_flops_utilization(600.0, gpu, torch.float64, 2) == {}
    assert model_flops_utilization(600.0, torch.device("cpu"), torch.bfloat16, 2) == {}
