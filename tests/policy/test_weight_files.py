"""Reading weights from safetensors files: whole and complete, or with a message that says what is wrong."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from aepo_lightning.distributed.collectives import first_on_each_node, together
from aepo_lightning.errors import DataError
from aepo_lightning.policy.weight_files import WeightFiles, weight_targets
from tests.support.builders import tiny_policy


@pytest.fixture
def folder(tmp_path):
    tensors = {"a": torch.arange(6.0).view(3, 2), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.tensor(7.0)}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_tensors_are_read_by_name_and_converted(folder):
    targets = {"a": torch.zeros(3, 2, dtype=torch.float64), "b": torch.zeros(4), "c": torch.zeros(())}
    WeightFiles(folder).load(targets)
    assert torch.equal(targets["a"], torch.arange(6.0, dtype=torch.float64).view(3, 2))
    assert torch.equal(targets["b"], torch.ones(4))
    assert targets["c"] == 7


def test_what_is_read_is_counted(folder):
    files = WeightFiles(folder)
    files.load({"a": torch.zeros(3, 2), "b": torch.zeros(4)})
    # Six of four bytes, four of two.
    assert (files.count.num_bytes, files.count.largest) == (24 + 8, 24)


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("max_shard_size", ["50GB", "40KB"], ids=["one_file", "index"])
def test_what_transformers_saves_is_read_back_bit_for_bit(tmp_path, is_tied, max_shard_size):
    saved = tiny_policy(tie_word_embeddings=is_tied).build_model()
    saved.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "40KB")
    other = tiny_policy(tie_word_embeddings=is_tied)
    other.seed = 1
    model = other.build_model()
    WeightFiles(tmp_path).load(weight_targets(model))
    assert all(torch.equal(found, saved.state_dict()[name]) for name, found in model.state_dict().items())


def test_a_module_needs_its_parameters_once_and_the_buffers_that_are_saved():
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    module[2].weight = module[1].weight
    module.register_buffer("frequencies", torch.ones(2), persistent=False)
    assert set(weight_targets(module)) == {
        *("0.weight", "0.bias", "0.running_mean", "0.running_var", "0.num_batches_tracked"),
        "1.weight",
    }


def test_a_missing_weight_is_named_together_with_what_is_there_instead(folder):
    with pytest.raises(
        DataError, match=r"must have every weight of the model, but d are missing and b, c are not used"
    ):
        WeightFiles(folder).load({"a": torch.zeros(3, 2), "d": torch.zeros(1)})


def test_many_missing_weights_are_counted(folder):
    with pytest.raises(DataError, match=r"but n0, n1, n2, n3, n4 and 2 more are missing"):
        WeightFiles(folder).load({f"n{number}": torch.zeros(1) for number in range(7)})


def test_another_shape_is_refused(folder):
    with pytest.raises(
        DataError, match=r"`a` in .*model.safetensors must have the shape \(2, 3\) .*, but has \(3, 2\)"
    ):
        WeightFiles(folder).load({"a": torch.zeros(2, 3)})


def test_quantised_weights_are_refused(tmp_path):
    save_file({"a": torch.ones(2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"`a` in .* must be one of F64, F32, BF16, F16, but is I8"):
        WeightFiles(tmp_path).load({"a": torch.zeros(2)})


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"must hold model.safetensors or model.safetensors.index.json, but has neither"
    ):
        WeightFiles(tmp_path)


def test_old_files_are_refused_with_what_to_do(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"Load pytorch_model.bin with transformers and save it with `save_pretrained`"):
        WeightFiles(tmp_path)


def test_a_file_that_was_cut_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="must be a whole safetensors file"):
        WeightFiles(folder)


def test_a_file_of_the_index_that_is_missing_is_named(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(DataError, match=r"names model-2.safetensors, which must exist"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", "[]"], ids=["cut", "empty", "list"])
def test_a_broken_index_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(DataError, match="must be JSON with a `weight_map`"):
        WeightFiles(tmp_path)


def test_a_file_without_a_tensor_that_the_index_promises_is_refused(folder):
    names = dict.fromkeys(("a", "z"), "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(DataError, match="`z` must be in"):
        WeightFiles(folder).load({"z": torch.zeros(1)})


def fail():
    raise DataError("no such folder")


@pytest.mark.parametrize("run", [together, first_on_each_node], ids=["together", "first_on_each_node"])
def test_one_process_is_together_and_first_by_itself(run):
    assert run(lambda: 3) == 3
    with pytest.raises(DataError, match=r"^no such folder$"):
        run(fail)
