"""Two FSDP2 ranks that read their shards from files: the weights of one process, and no more than a rank needs."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.publishing.gather import named_weights
from aepo_lightning.policy.sharding.builder import NetworkBuilder
from aepo_lightning.policy.sharding.fsdp2 import load_shards, reshard, shard
from aepo_lightning.policy.sharding.options import ShardingOptions
from aepo_lightning.policy.skeleton import build_skeleton
from aepo_lightning.policy.source import PretrainedPolicy
from tests.support.ranks import run_ranks
from tests.support.training import small_policy

pytestmark = pytest.mark.distributed
BUILT = {
    "tied": {"tie_word_embeddings": True},
    "untied": {},
    "one_row": {"hidden_size": 6, "num_attention_heads": 1, "head_dim": 1, "num_key_value_heads": 1, "rope_theta": 1e4},
}


def save(folder, max_shard_size="50GB", **fields):
    policy = small_policy(**fields)
    policy.build_model().save_pretrained(folder, max_shard_size=max_shard_size)
    policy.tokenizer.save_pretrained(folder)
    return PretrainedPolicy(name_or_path=str(folder))


def make_mesh():
    dist.init_process_group("gloo")
    return init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("data_parallel", "tensor_parallel"))


def load(rank, policy, options):
    """The network of one rank, its buffers, and what the rank has read."""
    mesh = make_mesh()
    network = PolicyNetwork(build_skeleton(policy.config, torch.float32))
    shard(network, mesh, options)
    count = load_shards(network, Path(policy.name_or_path), mesh, options)
    ids = torch.arange(4)[None]
    with torch.no_grad():
        network(ids, torch.ones(1, 3, dtype=torch.bool))
    reshard(network)
    is_sharded = all(isinstance(parameter, DTensor) for parameter in network.parameters())
    built = NetworkBuilder(policy=policy, sharding=options)
    found = {
        "weights": [
            {name: weight.clone() for name, weight in named_weights(each)}
            for each in (network, built.trained(mesh), built.reference(mesh))
        ],
        "buffers": {name: buffer.clone() for name, buffer in network.model.named_buffers()},
        "is_sharded": is_sharded,
        "count": (count.num_bytes, count.largest),
        "local_bytes": sum(parameter.to_local().nbytes for parameter in network.parameters()),
    }
    dist.destroy_process_group()
    return found


@pytest.mark.parametrize("fields", BUILT.values(), ids=BUILT)
@pytest.mark.parametrize("max_shard_size", ["50GB", "10KB"], ids=["one_file", "index"])
def test_every_rank_reads_its_rows_and_nothing_else(tmp_path, fields, max_shard_size):
    policy = save(tmp_path, max_shard_size, **fields)
    model = policy.build_model()
    expected = dict(model.named_parameters())
    ranks = run_ranks(load, policy, ShardingOptions())
    for found in ranks:
        assert found["is_sharded"]
        for weights in found["weights"]:
            assert weights.keys() == expected.keys()
            assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
        assert all(torch.equal(found["buffers"][name], buffer) for name, buffer in model.named_buffers())
        num_bytes, largest = found["count"]
        assert num_bytes == found["local_bytes"]
        # A rank has the larger half of a tensor with an odd number of rows.
        assert largest <= max(-(-weight.shape[0] // 2) * weight[0].nbytes for weight in expected.values())
    assert sum(found["count"][0] for found in ranks) == sum(weight.nbytes for weight in expected.values())


def test_every_unit_is_given_back_after_a_pass_without_backward(tmp_path):
    for found in run_ranks(load, save(tmp_path), ShardingOptions(reshard_after_forward=False)):
        assert found["is_sharded"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rotary_frequencies_stay_float32_in_any_precision(tmp_path, dtype):
    policy = save(tmp_path)
    policy.dtype = dtype
    expected = small_policy().build_model().model.rotary_emb.inv_freq
    for found in run_ranks(load, policy, ShardingOptions(mixed_precision=True)):
        buffer = found["buffers"]["model.rotary_emb.inv_freq"]
        assert buffer.dtype == torch.float32
        assert torch.equal(buffer, expected)


def load_own_folder(rank, folder):
    mesh = make_mesh()
    with pytest.raises(DataError) as error:
        NetworkBuilder(policy=PretrainedPolicy(name_or_path=str(folder / str(rank)))).trained(mesh)
    dist.destroy_process_group()
    return str(error.value)


def test_a_rank_that_cannot_read_its_weights_stops_all_of_them_with_its_reason(tmp_path):
    save(tmp_path / "0")
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    (tmp_path / "1" / "model.safetensors").unlink()
    for message in run_ranks(load_own_folder, tmp_path):
        assert f"{tmp_path / '1'} must hold model.safetensors" in message


class Downloading(PretrainedPolicy):
    """A policy whose weights must be downloaded, which only the first rank of a machine may do."""

    def __init__(self, policy, cache, fails):
        super().__init__(policy.name_or_path)
        self.cache = cache
        self.fails = fails
        self.num_downloads = 0

    def find_weights(self):
        if self.fails:
            raise DataError("the hub is down")
        if not self.cache.exists():
            self.num_downloads += 1
            shutil.copytree(self.name_or_path, self.cache)
        return super().find_weights()


def download(rank, policy, cache, fails):
    mesh = make_mesh()
    source = Downloading(policy, cache, fails)
    try:
        NetworkBuilder(policy=source).trained(mesh)
    except DataError as error:
        return str(error)
    finally:
        dist.destroy_process_group()
    return source.num_downloads


def test_one_rank_of_a_machine_downloads(tmp_path):
    assert run_ranks(download, save(tmp_path / "hub"), tmp_path / "cache", False) == [1, 0]


def test_a_download_that_fails_stops_all_ranks(tmp_path):
    found = run_ranks(download, save(tmp_path / "hub"), tmp_path / "cache", True)
    assert found == ["the hub is down"] * 2


def split_tensors(rank, policy):
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data_parallel", "tensor_parallel"))
    with pytest.raises(ConfigError, match=r"`strategy.tensor_parallel_size` must be 1, but got 2") as error:
        NetworkBuilder(policy=policy).trained(mesh)
    dist.destroy_process_group()
    return str(error.value)


def test_a_mesh_that_splits_more_than_the_data_is_refused():
    assert all("over all ranks" in message for message in run_ranks(split_tensors, small_policy()))


def memory(name):
    """A line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure_peak(rank, policy):
    mesh = make_mesh()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak so far
    before = memory("VmRSS")
    network = NetworkBuilder(policy=policy).trained(mesh)
    peak = memory("VmHWM") - before
    whole = sum(parameter.nbytes for parameter in network.parameters())
    dist.destroy_process_group()
    return peak, whole


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.slow
def test_no_rank_ever_holds_the_whole_model(tmp_path):
    policy = save(
        tmp_path,
        "50MB",
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=128,
    )
    for peak, whole in run_ranks(measure_peak, policy):
        assert whole > 350e6
        # Half of the model, one mapped file of 50 MB, the rows being read. Less where the process has free memory.
        assert 0.1 * whole < peak < 0.75 * whole
