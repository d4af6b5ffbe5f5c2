"""`aepo-export` turns what a run saved into folders that transformers, peft and vLLM load."""

import shutil
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from aepo_lightning.app.export import export, main
from aepo_lightning.app.saved_run import SavedPolicy
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.policy.hf_folder import FolderWriter
from aepo_lightning.policy.lora import LoRA
from aepo_lightning.policy.source import PretrainedPolicy
from tests.support.extras import needs
from tests.support.finished_runs import finished, start
from tests.support.training import small_policy

LORA = ["adapter=lora", "module.adapter.rank=3", "module.adapter.alpha=6.0"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run that trained all weights: its folder, and the weights it ended with."""
    return finished(tmp_path_factory.mktemp("runs") / "plain", [])


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.distributed)], ids=["file", "shards"])
def adapted(request, tmp_path_factory):
    """A run that trained an adapter, on one process or two."""
    needs("peft", "lora")
    folder = tmp_path_factory.mktemp("runs") / "adapted"
    return finished(folder, LORA, LoRA(rank=3, alpha=6.0), request.param)


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def check_same(model, weights):
    found = dict(model.named_parameters())
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_the_newest_checkpoint_of_a_run_becomes_a_model_with_the_same_bits(plain, tmp_path):
    folder, weights = plain
    done = export(folder, tmp_path / "policy")
    assert (done.global_step, done.checkpoint.name) == (2, "iteration0001.ckpt")
    check_same(load(tmp_path / "policy"), weights)


def test_any_checkpoint_may_be_named_and_converted(plain, tmp_path):
    folder, weights = plain
    first = folder / "checkpoints" / "iteration0000.ckpt"
    assert export(first, tmp_path / "first").global_step == 1
    with pytest.raises(AssertionError):
        check_same(load(tmp_path / "first"), weights)
    export(folder / "checkpoints" / "last.ckpt", tmp_path / "coarse", dtype="bfloat16")
    check_same(load(tmp_path / "coarse"), {name: weight.bfloat16() for name, weight in weights.items()})


def test_a_trained_adapter_comes_out_merged(adapted, tmp_path):
    folder, weights = adapted
    export(folder, tmp_path / "policy")
    check_same(load(tmp_path / "policy"), weights)
    first = dict(load(folder / "coldstart").named_parameters())
    assert any(not torch.equal(weights[name], first[name]) for name in weights)


def test_a_trained_adapter_comes_out_alone_and_does_the_same_on_the_first_weights(adapted, tmp_path):
    import peft

    folder, weights = adapted
    export(folder, tmp_path / "adapter", adapter="separate")
    assert {path.name for path in (tmp_path / "adapter").glob("*.safetensors")} == {"adapter_model.safetensors"}
    model = peft.PeftModel.from_pretrained(load(folder / "coldstart"), tmp_path / "adapter").merge_and_unload()
    for name, weight in weights.items():
        # peft adds in another order.
        torch.testing.assert_close(model.get_parameter(name).detach(), weight, atol=1e-6, rtol=1e-5)


def test_an_adapter_cannot_be_separated_from_a_run_that_trained_all_weights(plain, tmp_path):
    with pytest.raises(ConfigError, match="needs a run with an adapter; this one trained all weights"):
        export(plain[0], tmp_path / "adapter", adapter="separate")
    assert not (tmp_path / "adapter").exists()


def test_what_is_not_there_is_named(plain, tmp_path):
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        export(tmp_path / "nowhere", tmp_path / "policy")
    start(tmp_path / "new", [])
    with pytest.raises(ConfigError, match=r"new must hold a checkpoint, but .*checkpoints has none\. Train first"):
        export(tmp_path / "new", tmp_path / "policy")
    (tmp_path / "some" / "where").mkdir(parents=True)
    shutil.copy(plain[0] / "checkpoints" / "iteration0001.ckpt", tmp_path / "some" / "where" / "lost.ckpt")
    with pytest.raises(ConfigError, match=r"must have a config\.yaml, but .*some has none"):
        export(tmp_path / "some" / "where" / "lost.ckpt", tmp_path / "policy")
    with pytest.raises(ConfigError, match="`--dtype` must name a floating-point dtype, but got 'int8'"):
        export(plain[0], tmp_path / "policy", dtype="int8")
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize("fault", ["cut", "other bytes", "no checkpoint"])
def test_a_damaged_checkpoint_is_named_and_the_earlier_export_stays(plain, tmp_path, fault):
    copy = shutil.copytree(plain[0], tmp_path / "run", symlinks=True)
    export(copy, tmp_path / "policy")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "policy").iterdir()}
    path = copy / "checkpoints" / "iteration0001.ckpt"
    data = path.read_bytes()
    if fault == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif fault == "other bytes":
        path.write_bytes(data[: len(data) // 2] + bytes(100) + data[len(data) // 2 + 100 :])
    else:
        path.write_text("not a checkpoint")
    with pytest.raises(DataError, match=r"iteration0001\.ckpt must be a whole part of the checkpoint"):
        export(copy, tmp_path / "policy")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "policy").iterdir()} == before


def test_a_checkpoint_of_another_model_is_refused(plain, tmp_path):
    copy = shutil.copytree(plain[0], tmp_path / "run", symlinks=True)
    shutil.rmtree(copy / "coldstart")
    other = small_policy(head_dim=32, num_hidden_layers=3)
    FolderWriter(target=copy / "coldstart", source=other).write_model(other.build_model().named_parameters())
    with pytest.raises(DataError, match=r"num_hidden_layers: 2 in it, 3 here"):
        export(copy, tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def test_settings_of_an_adapter_that_do_not_fit_the_checkpoint_are_refused(plain, adapted):
    policy = PretrainedPolicy(name_or_path=str(plain[0] / "coldstart"))
    with pytest.raises(DataError, match="must have an adapter as the configuration of its run says, but it does not"):
        SavedPolicy.open(plain[0] / "checkpoints" / "iteration0001.ckpt", LoRA(), policy)
    with pytest.raises(DataError, match="must not have an adapter as the configuration of its run says, but it does"):
        SavedPolicy.open(adapted[0] / "checkpoints" / "iteration0001.ckpt", None, policy)


def test_the_command_says_what_it_wrote_or_why_not(plain, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["aepo-export", *map(str, arguments)])
        main()

    run(plain[0], tmp_path / "policy")
    assert capsys.readouterr().out.strip().endswith("iteration0001.ckpt after 2 optimiser steps")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(SystemExit, match="ConfigError: The target must be new or an earlier export"):
        run(plain[0], tmp_path / "mine")
    run(plain[0], tmp_path / "mine", "--overwrite", "--dtype", "bfloat16")
    assert load(tmp_path / "mine").dtype == torch.bfloat16
