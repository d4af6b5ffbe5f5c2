"""Which policy a path stands for, and digests that tell models apart."""

import pytest

from aepo_lightning.app.evaluation.run_policy import run_of
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.evaluation import evaluated_policy
from aepo_lightning.evaluation.evaluated_policy import evaluated, files_digest
from aepo_lightning.policy.hf_folder import FolderWriter
from aepo_lightning.policy.source import PretrainedPolicy
from tests.support.training import small_policy


def test_a_run_and_its_checkpoint_are_told_apart(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    checkpoint = tmp_path / "run" / "checkpoints" / "iteration0001.ckpt"
    checkpoint.write_text("")
    assert run_of(tmp_path / "run") == (tmp_path / "run", None)
    assert run_of(checkpoint) == (tmp_path / "run", checkpoint)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], r"must be named, but got .*there"),
        (["there/"], r"there has no config\.yaml\. Name a run's folder"),
        (["there/config.json"], r"there is a model\. .* what a model is asked: benchmarks=\[gsm8k\]"),
    ],
    ids=["nothing", "no-run", "model"],
)
def test_what_is_no_run_is_refused(made, message, tmp_path):
    for name in made:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match=message):
        run_of(tmp_path / "there")


def test_a_digest_tells_files_apart_by_name_and_content(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluated_policy, "_WHOLE_BYTES", 100)
    monkeypatch.setattr(evaluated_policy, "_BLOCK_BYTES", 10)
    small, large = tmp_path / "a", tmp_path / "b"
    small.write_bytes(b"x" * 100)
    large.write_bytes(b"x" * 2000)
    found = {files_digest([small]), files_digest([large]), files_digest([small, large])}
    for place in (0, 999, 1999):
        content = bytearray(b"x" * 2000)
        content[place] = 0
        large.write_bytes(content)
        found.add(files_digest([large]))
    small.write_bytes(b"x" * 99 + b"y")
    found.add(files_digest([small]))
    assert len(found) == 7


def test_a_policy_made_here_is_known_by_its_weights():
    first, same, other = (evaluated(small_policy(seed=seed)) for seed in (0, 0, 1))
    assert first.digest == same.digest != other.digest
    assert (first.name, first.stamp.version, first.stamp.digest) == ("qwen3", 0, first.digest)
    assert dict(first.weights()).keys() == dict(small_policy().build_model().named_parameters()).keys()


def test_a_model_folder_without_a_tokenizer_is_refused_by_name(tmp_path):
    policy = small_policy()
    FolderWriter(target=tmp_path / "model", source=policy).write_model(policy.build_model().named_parameters())
    assert evaluated(PretrainedPolicy(str(tmp_path / "model"))).name == "model"
    for path in (tmp_path / "model").glob("*token*"):
        path.unlink()
    with pytest.raises(DataError, match=r"model must hold a tokenizer, but has no file tokenizer\*"):
        evaluated(PretrainedPolicy(str(tmp_path / "model")))
