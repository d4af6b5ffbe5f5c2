"""A configuration that an earlier version saved is read in the present form, and builds."""

import math
from importlib import import_module

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from aepo_lightning.app import saved_config
from aepo_lightning.app.build import build
from aepo_lightning.app.saved_config import FORM_KEY, read_config, save_config
from aepo_lightning.errors import ConfigError
from aepo_lightning.rollout import ScoringSettings
from tests.support.extras import needs

FORM = len(saved_config._STEPS)


def translated(tmp_path, plain):
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(plain))
    return read_config(path)


def test_a_saved_configuration_is_read_as_it_was_written_with_its_form(tmp_path):
    cfg = OmegaConf.create({"name": "x", "seed": "${other}", "other": 3, "needed": "???", "list": [{"a": None}]})
    save_config(cfg, tmp_path / "new" / "config.yaml")
    assert read_config(tmp_path / "new" / "config.yaml") == cfg
    assert OmegaConf.load(tmp_path / "new" / "config.yaml")[FORM_KEY] == FORM


def test_a_later_form_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"must have a form up to \d+, but has 999: a later version"):
        translated(tmp_path, {FORM_KEY: 999})


@pytest.mark.parametrize(("old", "new"), saved_config._MOVED.items(), ids=saved_config._MOVED)
def test_what_has_moved_is_where_the_table_says(old, new):
    if new.endswith("VLLMEngine") or new == "aepo_lightning.engines.vllm.engine":
        needs("vllm", "vllm")
    try:
        import_module(new)
    except ModuleNotFoundError:
        get_object(new)
    with pytest.raises((ImportError, AttributeError)):
        getattr(import_module(old.rpartition(".")[0]), old.rpartition(".")[2])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("aepo_lightning.rollout.TagProtocol.for_tools", "aepo_lightning.chat_formats.tags.TagFormat.for_tools"),
        ("aepo_lightning.adapters.LoRA", "aepo_lightning.policy.lora.LoRA"),
        ("aepo_lightning.policy.lora.LoRA", "aepo_lightning.policy.lora.LoRA"),
        ("torch.optim.AdamW", "torch.optim.AdamW"),
    ],
)
def test_targets_are_translated_wherever_they_are(tmp_path, old, new):
    cfg = translated(tmp_path, {FORM_KEY: FORM, "tools": [{"inner": {"_target_": old, "kept": 1}}]})
    assert cfg.tools == [{"inner": {"_target_": new, "kept": 1}}]


def test_a_fixed_number_of_root_chains_becomes_the_same_share():
    allocator = {"_target_": "aepo_lightning.budgets.FixedBudget", "num_root_chains": 3}
    plain = {"algorithm": {"allocator": allocator}, "rollout": {"settings": {"budget": 8}}}
    saved_config._name_share_of_fixed_budget(plain)
    found = plain["algorithm"]["allocator"]
    assert get_object(found["_target_"])(share=found["share"]).global_budget(8, 0.0, []) == 3


def test_steps_run_from_the_form_of_the_file_on(tmp_path, monkeypatch):
    steps = tuple((lambda plain, number=number: plain["seen"].append(number)) for number in range(3))
    monkeypatch.setattr(saved_config, "_STEPS", steps)
    assert translated(tmp_path, {"seen": []}).seen == [0, 1, 2]
    assert translated(tmp_path, {FORM_KEY: 2, "seen": []}).seen == [2]
    assert translated(tmp_path, {FORM_KEY: 3, "seen": []}).seen == []


def test_listed_tools_stand_under_their_names(tmp_path):
    listed = [
        {"_target_": "aepo_lightning.tools.CorpusSearch", "name": "look_up"},
        {"_target_": "aepo_lightning.tools.PythonTool"},
        {"_target_": "aepo_lightning.tools.IndexSearch"},
    ]
    plain = {"tools": {"_target_": "aepo_lightning.tools.ToolRuntime", "timeout_s": 3.0, "tools": listed}}
    saved_config._name_tools(plain)
    assert plain["tools"] == {
        "runtime": {"_target_": "aepo_lightning.tools.ToolRuntime", "timeout_s": 3.0},
        "look_up": listed[0],
        "python": listed[1],
        "search": listed[2],
    }


def test_answers_are_compared_and_waited_for_as_they_were():
    plain = {"rollout": {}, "reward": {"_target_": "aepo_lightning.rewards.PaperReward", "multi_tool_bonus": 0.1}}
    plain["data"] = {"task": {"_target_": "aepo_lightning.tasks.OfficialParquet", "path": "a.parquet"}}
    saved_config._keep_scoring(plain)
    assert plain["data"]["task"]["on_bad_gold"] == "keep"
    assert plain["reward"]["match"] == "words"
    saved_config._say_what_errors_of_rewards_mean(plain)
    assert build(plain["rollout"]["scoring"]) == ScoringSettings(deadline_s=math.inf)


@pytest.mark.parametrize(("then", "now"), [("stop", "fail"), ("mask", "abstain")])
def test_what_errors_of_rewards_mean_stays_what_it_was(then, now):
    plain = {"rollout": {"scoring": {"on_error": then, "deadline_s": 5.0}}}
    saved_config._say_what_errors_of_rewards_mean(plain)
    assert plain == {"rollout": {"scoring": {"on_error": now, "deadline_s": 5.0}}}
    saved_config._say_what_errors_of_rewards_mean({"rollout": {"scoring": {}}})


@pytest.mark.parametrize("own", [None, "", "Mine."])
def test_prompts_stay_as_they_were_sent(own):
    task = {"_target_": "aepo_lightning.tasks.JsonlQuestions"} | ({} if own is None else {"system_prompt": own})
    formats = ["aepo_lightning.chat_formats.tags.TagFormat.for_tools", "theirs.Format"]
    for target in formats:
        plain = {"rollout": {"chat_format": {"_target_": target}}, "data": {"task": dict(task)}}
        saved_config._keep_prompts(plain)
        assert plain["rollout"]["chat_format"].get("system_prompt") == ("none" if "aepo" in target else None)
        said = plain["data"]["task"]["system_prompt"]
        assert "a search engine and a Python interpreter" in said if own is None else said == own


@pytest.mark.parametrize(("action", "acts"), [({}, []), ({"action": "warn"}, []), ({"action": "stop"}, ["stop"])])
def test_the_limits_of_the_guard_become_a_part_of_their_own(action, acts):
    guard = {"_target_": "aepo_lightning.callbacks.EntropyGuard", "minimum_nats": 0.01, "until_reward": None, **action}
    plain = {"callbacks": {"entropy_guard": guard, "checkpoint": None}}
    saved_config._give_the_guard_its_limits(plain)
    assert plain["callbacks"]["entropy_guard"] == {
        "_target_": "aepo_lightning.callbacks.EntropyGuard",
        "limits": {"_target_": "aepo_lightning.callbacks.Limits", "minimum_nats": 0.01, "until_reward": None},
        "settings": {"_target_": "aepo_lightning.callbacks.GuardSettings", "acts": acts},
    }
