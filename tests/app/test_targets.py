"""A configuration that came with a folder calls parts of this library, and nothing else."""

import pytest
from omegaconf import OmegaConf

from aepo_lightning.app.export import export
from aepo_lightning.app.replay import replay_run
from aepo_lightning.app.saved_config import save_config
from aepo_lightning.app.targets import check_targets, find_targets, is_allowed
from aepo_lightning.errors import ConfigError
from tests.conf.test_configs import all_options
from tests.support.paths import CONF

PARTS = [
    "aepo_lightning.tools.Serper",
    "aepo_lightning.objectives.clipped_surrogate.ClippedSurrogate",
    "aepo_lightning.engines.transformers.engine.TransformersEngine",
    "aepo_lightning.engines.vllm.engine.VLLMEngine",
    "aepo_lightning.chat_formats.tags.TagFormat.for_tools",
    "aepo_lightning.callbacks.EntropyMonitor",
    "torch.optim.SGD",
    "torch.optim.lr_scheduler.LambdaLR",
    "transformers.get_cosine_schedule_with_warmup",
    "lightning.pytorch.loggers.CSVLogger",
]
HARMFUL = [
    "os.system",
    "subprocess.Popen",
    "builtins.eval",
    "pickle.loads",
    "torch.load",
    "torch.hub.load",
    "hydra.utils.get_method",
    "hydra._internal.utils._locate",
    "shutil.rmtree",
    "aepo_lightning.app.build.os.system",
    "aepo_lightning.app.sweep.subprocess.Popen",
    "aepo_lightning.app.build.build",
    "aepo_lightning.atomic_files.remove",
    "aepo_lightning.atomic_files.shutil.rmtree",
    "aepo_lightning.tools.jail.worker.subprocess.run",
    "aepo_lightning.tools.import_official_cache",
    "aepo_lightning.tools.MCPServer",
    "aepo_lightning.tools.mcp_tools",
    "aepo_lightning.tools.mcp.MCPServer",
    "aepo_lightning.nothing.of_this.name",
    "aepo_lightning",
    "aepo_lightning.tools",
    "aepo_lightning.policy.source.PretrainedPolicy.__init__.__globals__",
    "torch.optim.sgd.torch.load",
    "torch.optim.lr_scheduler.warnings.warn",
    "transformers.get_scheduler.__globals__",
    "lightning.pytorch.callbacks.os",
    "my_rewards.correct",
    "",
    "???",
]


@pytest.mark.parametrize("target", PARTS)
def test_parts_are_called_under_any_of_their_names(target):
    assert is_allowed(target)


@pytest.mark.parametrize("target", HARMFUL)
def test_nothing_else_is(target):
    assert not is_allowed(target)


def test_every_option_of_this_library_passes():
    for group, option in all_options():
        targets = list(find_targets(OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml"))))
        if (group, option) != ("tools", "mcp"):
            assert all(is_allowed(each) for each in targets if each != "???"), (group, option)


@pytest.mark.parametrize("allowed", ["rewards_of_mine.correct", "rewards_of_mine"])
def test_what_the_user_allows_is_called_but_not_what_it_imports(tmp_path, monkeypatch, allowed):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rewards_of_mine.py").write_text(
        "import os\nfrom os import system\nfrom aepo_lightning import tool\ndef correct(sample): return 1.0\n"
    )
    assert is_allowed("rewards_of_mine.correct", [allowed])
    for target in ("rewards_of_mine.os.system", "rewards_of_mine.system", "rewards_of_mine.os", "rewards_of_mines.a"):
        assert not is_allowed(target, [allowed])


def test_only_what_will_be_built_is_looked_at_and_all_of_it_is_named():
    cfg = OmegaConf.create(
        {"model": {"_target_": "os.system"}, "data": {"list": [{"deep": {"_target_": "a.b"}}]}, "seed": 0}
    )
    check_targets(cfg, "x", sections=["seed", "nothing"])
    with pytest.raises(ConfigError, match=r"^x must .* would call a\.b\. If you trust .*: --allow a\.b\.$"):
        check_targets(cfg, "x", sections=["data"])
    with pytest.raises(ConfigError, match=r"would call os\.system, a\.b\. .*: --allow os\.system --allow a\.b\."):
        check_targets(cfg, "x")
    check_targets(cfg, "x", allowed=["os.system", "a.b"])


@pytest.mark.parametrize(
    "reward",
    [
        "${elsewhere}",
        {"deep": ["${elsewhere}"]},
        {"_target_": "${elsewhere._target_}"},
        {"_target_": "os.${name}"},
        "${oc.create:{_target_:os.system}}",
    ],
    ids=str,
)
def test_what_stands_elsewhere_is_found(reward):
    cfg = OmegaConf.create({"elsewhere": {"_target_": "os.system"}, "name": "system", "reward": reward})
    for sections in (["reward"], []):
        with pytest.raises(ConfigError, match=r"would call os\.system"):
            check_targets(cfg, "x", sections=sections)


def test_what_cannot_be_read_is_not_built():
    cfg = OmegaConf.create({"model": 1, "reward": {"_target_": "${oc.env:NOT_SET_HERE}"}})
    check_targets(cfg, "x", sections=["model"])
    with pytest.raises(ConfigError, match=r"x must have values that can be read here, but: .*NOT_SET_HERE"):
        check_targets(cfg, "x", sections=["reward"])


@pytest.mark.parametrize("section", ["model", "reward", "tools.search", "engine.inner"])
def test_replay_and_export_of_a_foreign_folder_run_nothing_of_it(tmp_path, section):
    mark = tmp_path / "mark"
    cfg = OmegaConf.create({"model": {}, "module": {"adapter": None}, "num_threads": 1})
    OmegaConf.update(cfg, section, {"_target_": "os.mkdir", "path": str(mark)}, force_add=True)
    save_config(cfg, tmp_path / "run" / "config.yaml")
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "a.ckpt").touch()
    with pytest.raises(ConfigError, match=r"would call os\.mkdir"):
        next(replay_run(tmp_path / "run"))
    if section == "model":
        with pytest.raises(ConfigError, match=r"would call os\.mkdir"):
            export(tmp_path / "run", tmp_path / "target")
    assert not mark.exists()
