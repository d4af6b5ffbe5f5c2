"""Where the weights of a run are found, and which come nearest where those that are wanted were not kept."""

import pytest
import torch
from safetensors.torch import save_file

from aepo_lightning.app.kept_weights import named_weights_file, nearest_weights
from aepo_lightning.errors import ConfigError
from tests.support.builders import tiny_policy

POLICY = tiny_policy()


def keep(folder, *versions):
    path = folder / "rollouts" / "weights"
    path.mkdir(parents=True)
    for version in versions:
        save_file({"a": torch.full((1,), float(version))}, path / f"{version:08d}.safetensors")


@pytest.mark.parametrize(
    ("version", "expected"), [(0, 0), (2, 0), (3, 4), (4, 4), (6, 4), (7, 8), (90, 8)], ids=lambda each: str(each)
)
def test_the_nearest_weights_are_taken_the_earlier_of_two(tmp_path, version, expected):
    keep(tmp_path, 4, 8)
    found = nearest_weights(tmp_path, POLICY, None, version)
    assert found.version == expected
    if expected:
        assert found.place == f"rollouts/weights/{expected:08d}.safetensors"
        assert found.load()["a"].item() == expected, "its own file, not that of the last one"


def test_a_run_that_kept_none_has_what_it_started_from(tmp_path):
    found = nearest_weights(tmp_path, POLICY, None, 12)
    assert (found.version, found.place) == (0, "the model that it started from")
    assert "lm_head.weight" in found.load()


def test_a_file_says_its_steps_by_its_name_or_not_at_all(tmp_path):
    keep(tmp_path, 4)
    path = tmp_path / "rollouts" / "weights" / "00000004.safetensors"
    assert named_weights_file(path, POLICY, None).version == 4
    other = path.rename(tmp_path / "mine.safetensors")
    assert named_weights_file(other, POLICY, None).version is None
    with pytest.raises(ConfigError, match="`--checkpoint` must be a checkpoint or a file of weights"):
        named_weights_file(path, POLICY, None)
