"""What `auto` means: the device of the trainer, and the precision of a policy on it."""

import logging
import re

import pytest
import torch
from omegaconf import OmegaConf

from aepo_lightning.app.build import build_trainer
from aepo_lightning.app.devices import announce_precision, choose_precision, runs_on_gpus
from tests.support.composed import composed

PRETRAINED = {"model": {"name_or_path": "some/model", "dtype": "float32"}}
GPU = {"trainer": {"accelerator": "gpu", "precision": "auto"}}
FSDP2 = {"strategy": {"_target_": "lightning.pytorch.strategies.ModelParallelStrategy"}}
FSDP1 = {"strategy": {"_target_": "lightning.pytorch.strategies.FSDPStrategy"}}


def settings(*parts):
    base = {
        "model": {},
        "strategy": {"_target_": "builtins.str"},
        "trainer": {"accelerator": "cpu", "precision": "auto"},
    }
    return OmegaConf.merge(base, *parts)


def precision(word):
    return {"trainer": {"precision": word}}


@pytest.mark.parametrize(
    ("accelerator", "has_gpu", "expected"),
    [("cpu", True, False), ("auto", True, True), ("auto", False, False), ("gpu", False, True)],
)
def test_auto_is_the_gpu_where_there_is_one(monkeypatch, accelerator, has_gpu, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert runs_on_gpus(settings({"trainer": {"accelerator": accelerator}})) is expected


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([PRETRAINED, GPU], "bf16-mixed"),
        ([PRETRAINED, GPU, precision("32-true")], "32-true"),
        ([PRETRAINED, GPU, {"model": {"dtype": "bfloat16"}}], "32-true"),
        ([PRETRAINED, GPU, FSDP2], "32-true"),
        ([PRETRAINED, GPU, FSDP1], "32-true"),
        ([PRETRAINED], "32-true"),
        ([GPU], "32-true"),
        ([precision("bf16-mixed")], "bf16-mixed"),
    ],
    ids=["pretrained", "asked", "narrow", "fsdp2", "fsdp1", "cpu", "small", "asked on a cpu"],
)
def test_pretrained_float32_weights_whole_on_gpus_are_multiplied_in_bfloat16(parts, expected):
    assert choose_precision(settings(*parts)) == expected


def test_the_choice_is_said_where_it_is_not_written_down(caplog):
    caplog.set_level(logging.INFO)
    announce_precision(settings(PRETRAINED, GPU, precision("bf16-mixed")))
    announce_precision(settings(GPU))
    assert caplog.messages == []
    announce_precision(settings(PRETRAINED, GPU))
    [line] = caplog.messages
    assert "float32 weights" in line


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_that_lose_small_steps_come_with_a_warning(caplog, dtype):
    narrow = {"model": {"dtype": dtype}, "module": {"adapter": None}}
    announce_precision(settings(PRETRAINED, narrow))
    [line] = caplog.messages
    assert dtype in line
    assert "model.dtype=float32" in line
    weight, spacing = torch.tensor(1.0, dtype=getattr(torch, dtype)), int(re.search(r"a (\d+)th of", line)[1])
    assert weight - 0.9 / spacing / 2 == weight
    assert weight - 1 / spacing != weight
    caplog.clear()
    announce_precision(settings(PRETRAINED, narrow, {"module": {"adapter": {"rank": 8}}}))
    announce_precision(settings(PRETRAINED))
    assert caplog.messages == []


def test_the_trainer_gets_what_was_chosen(tmp_path):
    cfg = composed("callbacks=none")
    assert build_trainer(cfg, tmp_path).precision == "32-true"
    cfg.trainer.precision = "bf16-mixed"
    assert build_trainer(cfg, tmp_path).precision == "bf16-mixed"
