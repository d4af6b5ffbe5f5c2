"""What single checks say of the main job, and of configurations in which one thing is wrong."""

import re
import sys
from functools import cache
from types import SimpleNamespace

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from aepo_lightning.app.doctor import answers, machine, policy, services
from aepo_lightning.app.doctor.finding import NothingToLookAt
from aepo_lightning.app.doctor.subject import Subject
from aepo_lightning.app.evaluation.composing import composed_config
from aepo_lightning.branching import EntropyBalanced, RandomBranching
from aepo_lightning.contracts.objective import ObjectiveInput, ObjectiveOutput
from aepo_lightning.errors import EngineError
from tests.support.extras import needs
from tests.support.judges import completion, judge_server, verdict
from tests.support.paths import SUPPORT

VLLM = "engine._target_=aepo_lightning.engines.vllm.engine.VLLMEngine"


def constant(sample) -> float:
    """As a user may have it, by mistake."""
    return 1.0


def upside_down(sample) -> float:
    return float(sample.question.answers[0] not in sample.response_text)


@cache
def main_job():
    return composed_config("train", [])


@pytest.fixture
def subject(tmp_path):
    """The main job with other values; the groups of a configuration are composed only where a test is slow."""

    def make(*words):
        values = dict(word.split("=") for word in words)
        cfg = OmegaConf.merge(main_job(), {"output_root": str(tmp_path)})
        for key, value in values.items():
            OmegaConf.update(cfg, key, yaml.safe_load(value), merge=False, force_add=True)
        return Subject(cfg=cfg, folder=tmp_path)

    return make


@pytest.fixture
def composed(tmp_path):
    return lambda *words: Subject(cfg=composed_config("train", [f"output_root={tmp_path}", *words]), folder=tmp_path)


def said(found):
    return [f"{finding.level} {finding.about} {finding.line}" for finding in found]


def test_what_is_installed_is_compared_with_the_metadata_of_the_package(subject, monkeypatch):
    main = subject()
    (line,) = said(machine.look_at_versions(main))
    assert line.startswith("pass  torch 2")
    monkeypatch.setattr(machine, "_installed", lambda name, _: "" if name == "tqdm" else "0.1")
    lines = said(machine.look_at_versions(main))
    assert "fail tqdm tqdm>=4.67 is needed, but nothing is installed." in lines
    assert any(line.startswith("fail torch torch<2.14,>=2.11 is needed, but 0.1") for line in lines)


def test_extras_are_asked_for_where_parts_need_them(subject, monkeypatch):
    monkeypatch.setattr(machine, "_installed", lambda name, _: "" if name in ("vllm", "peft") else "99")
    found = machine.look_at_versions(subject(VLLM, "module.adapter._target_=aepo_lightning.policy.lora.LoRA"))
    remedies = {finding.about: finding.remedy for finding in found}
    assert remedies["vllm"] == "pip install -e '.[vllm]'."
    assert remedies["peft"] == "pip install -e '.[lora]'."


def test_loggers_are_asked_for_where_they_are_used(subject, monkeypatch):
    monkeypatch.setattr(machine, "_installed", lambda name, _: "" if name == "wandb" else "99")
    found = machine.look_at_versions(subject("logger._target_=lightning.pytorch.loggers.WandbLogger"))
    assert {finding.about: finding.remedy for finding in found}["wandb"] == "pip install -e '.[wandb]'."


@pytest.mark.slow
def test_gpus_that_are_not_there_and_a_disk_that_is_too_small_fail(composed, monkeypatch):
    big = composed("+experiment=aepo_qwen3_14b")
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: False)
    assert said(machine.look_at_devices(big))[0].startswith("fail  8 GPUs are asked for, but 0 are here")
    assert "which is supposed: none is here" in said(machine.look_at_memory(big))[0]
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**10}))
    # Three checkpoints of 12 bytes for each of 14.8e9 numbers, the weights once more, and 2 GB beside the rollouts.
    (line,) = said(machine.look_at_disk(big))
    assert line.startswith("fail  593 GB at most for 3 checkpoints of 177 GB")
    assert "10 GB are free" in line


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("free_gib", "level"), [(1.0, "warn  of GPU 1 1 GiB are free, but the plan needs "), (80.0, None)]
)
def test_memory_of_gpus_that_somebody_else_holds_is_a_warning(monkeypatch, free_gib, level):
    class Plan:
        problems, peak_bytes, peak_phase = (), 2 * machine.GIB, "update"
        settings = SimpleNamespace(is_gpu=True, gpus_per_node=2, gpu_memory_gib=80.0, device_name="GPU")

    free = {0: 80.0, 1: free_gib}
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine.torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(
        machine.torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * machine.GIB)
    )
    monkeypatch.setattr(machine.torch.cuda, "mem_get_info", lambda index: (free[index] * machine.GIB, 80 * machine.GIB))
    monkeypatch.setattr(machine, "make_plan", lambda _: Plan)
    monkeypatch.setattr(machine, "replace", lambda settings, **_: settings)
    first, *others = said(machine.look_at_memory(SimpleNamespace(plan=Plan)))
    assert first == "pass  by the plan 2 GiB of the 80 GiB of each GPU, in the update."
    assert [line.startswith(level) for line in others] == ([True] if level else [])


def test_a_folder_that_is_a_file_fails(subject, tmp_path):
    (tmp_path / "runs").write_text("")
    assert said(machine.look_at_permission(subject()))[0].startswith(f"pass  {tmp_path} can be written")
    (line,) = said(machine.look_at_permission(subject(f"output_root={tmp_path}/runs")))
    assert line == f"fail  {tmp_path}/runs must be a folder, but is a file."


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ([], "pass  a right answer earns 1, a wrong one 0, none -1."),
        (
            ["reward=own", f"reward._target_={__name__}.constant"],
            "warn  constant: a right answer, a wrong one and none",
        ),
        ([f"reward._target_={__name__}.upside_down"], "warn  a right answer earns 0, a wrong one 1."),
    ],
    ids=["paper", "constant", "upside-down"],
)
def test_a_reward_that_tells_nothing_apart_is_an_alarm(subject, reward, words):
    (line,) = said(answers.look_at_reward(subject(*reward, "rollout.scoring.isolation=thread")))
    assert line.startswith(words)


@pytest.mark.parametrize(
    ("policy", "share"),
    [
        (EntropyBalanced(decision="threshold", tau=1.0, alpha=0.5, gamma=0.1), 0.0),
        (EntropyBalanced(decision="threshold", tau=0.0, alpha=0.5, gamma=0.1), 1.0),
        (EntropyBalanced(alpha=0.25, gamma=0.0), 0.25),
        (RandomBranching(rate=0.0), 0.0),
    ],
    ids=["never", "always", "bernoulli", "random"],
)
def test_the_share_of_branches_is_that_over_all_cases(policy, share):
    assert answers.branching_share(policy) == share


def test_a_rule_that_never_or_always_fires_and_a_tau_that_nobody_reads_are_alarms(subject):
    rule = "algorithm.branch_policy"
    never = [f"{rule}.decision=threshold", f"{rule}.tau=1.0", f"{rule}.gamma=0.1"]
    (finding,) = answers.look_at_branch_rule(subject(*never))
    assert finding.line.startswith("never fires")
    assert finding.remedy == "Lower algorithm.branch_policy.tau, or raise alpha."
    (finding,) = answers.look_at_branch_rule(subject(f"{rule}.alpha=1.0", f"{rule}.gamma=0.0"))
    assert finding.line.startswith("always fires")
    _, finding = answers.look_at_branch_rule(subject(f"{rule}.tau=0.01"))
    assert finding.line == "`tau` is 0.01, but decision=bernoulli does not look at it."
    never = subject("algorithm.branch_policy={_target_: aepo_lightning.branching.NeverBranch}")
    assert said(answers.look_at_branch_rule(never)) == ["skipped  aepo does not branch."]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "pass  4 optimiser steps on the same rollouts move ratios"),
        (
            ["experience.questions_per_step=32"],
            "warn  never fires: an iteration is one optimiser step on fresh rollouts",
        ),
        (["experience.questions_per_step=32", "experience.num_epochs=2"], "pass  2 optimiser steps"),
        (
            ["algorithm.objective.clip_range_low=1.0", "algorithm.objective.clip_range_high=.inf"],
            "warn  never fires: no ratio from 0.01 to 100 is beyond it.",
        ),
        ([f"algorithm.objective={{_target_: {__name__}.Plain}}"], "skipped  Plain does not say what it clips."),
    ],
    ids=["main job", "one step", "two passes", "wide", "another"],
)
def test_a_clip_range_that_cannot_act_is_an_alarm(subject, words, line):
    assert [text[: len(line)] for text in said(policy.look_at_clip_range(subject(*words)))] == [line]


class Plain:
    """The policy gradient."""

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return ObjectiveOutput(token_losses=-inputs.logprobs * inputs.advantages, metrics={})


def served_by(subject, *words, command=(), **server):
    """The main job with the tools of an MCP server beside its search."""
    found = subject()
    node = {"_target_": "aepo_lightning.tools.MCPServer", "command": [*words, *command], **server}
    OmegaConf.update(
        found.cfg, "tools.mcp", {"_target_": "aepo_lightning.tools.mcp_tools", "server": node}, force_add=True
    )
    return found


def test_an_mcp_server_that_answers_is_named_with_its_tools(subject, raw_server):
    _, line = said(services.look_at_tools(served_by(subject, *raw_server("good"), connect_timeout_s=120.0)))
    assert line == "pass mcp the server answers, with echo, _9lives, far, letters, old, anything, picture."


@pytest.fixture
def raw_server(tmp_path):
    needs("mcp", "mcp")
    (tmp_path / "started").mkdir()
    return lambda mode: [sys.executable, str(SUPPORT / "mcp_raw.py"), str(tmp_path / "started"), mode]


# One ends at once, of one nobody is there, and one lists no tools: it is given up after its time.
@pytest.mark.parametrize("mode", ["dead", "unreachable", "hanging"])
def test_an_mcp_server_that_cannot_be_reached_fails_and_the_other_tools_are_looked_at(subject, raw_server, mode):
    settings = {
        "dead": {"command": [sys.executable, "-c", "raise SystemExit(3)"]},
        "unreachable": {"command": [], "url": "http://127.0.0.1:9/mcp"},
        "hanging": {"command": raw_server("silent"), "connect_timeout_s": 3.0},
    }
    broken = served_by(subject, **settings[mode])
    search, line = said(services.look_at_tools(broken))
    assert search.startswith("pass search it answers in")
    assert re.match(r"fail mcp `tools\.mcp`: the server (could not be reached|failed) \(", line)
    assert line.endswith("See whether `tools.mcp` names it rightly, and whether it runs.")
    with pytest.raises(NothingToLookAt, match="it needs the tools, see above"):
        _ = broken.tools


@pytest.mark.slow
def test_a_search_without_its_file_fails_and_a_sandbox_says_what_walls_stand(composed, monkeypatch, tmp_path):
    monkeypatch.setenv("AEPO_DATA_DIR", str(tmp_path))
    lines = said(services.look_at_tools(composed("tools=search_cache_python")))
    assert len(lines) == 2
    assert lines[0].startswith("fail search `tools.search`: `path` must be a readable file")
    assert lines[1].startswith(("pass python jail: bubblewrap", "fail python"))
    lines = said(services.look_at_tools(composed("tools=python", "tools.python.isolation=unsafe")))
    assert lines[0].startswith("warn python")


def test_a_search_is_asked(subject):
    assert said(services.look_at_tools(subject()))[0].startswith("pass search it answers in")


@pytest.mark.slow
def test_a_judge_that_is_not_there_fails_and_one_that_is_passes(composed):
    checker = "reward.terms.answer.checker"
    words = ["reward=judge", f"{checker}.model=m", f"{checker}.rule=null", f"{checker}.cache_path=null"]
    with judge_server(completion(verdict("correct"))) as server:
        words += [f"{checker}.base_url={server.url}/v1", f"{checker}.limits.max_attempts=1"]
        (line,) = said(services.look_at_judges(composed(*words)))
    assert line == f"pass {checker} m answers, and finds that four is 4."
    (line,) = said(services.look_at_judges(composed(*words)))
    assert line.startswith(f"fail {checker} m ")


@pytest.mark.slow
def test_an_engine_that_keeps_its_weights_fails_and_the_trainer_has_its_own_again(subject, monkeypatch):
    small = subject("model.architecture.num_hidden_layers=1")
    (line,) = said(policy.look_at_publication(small))
    assert line.startswith("pass  a change of ")
    before = [each.detach().clone() for each in small.module.parameters()]
    monkeypatch.setattr(type(small.engine), "load_weights", lambda *_: None)
    with pytest.raises(EngineError, match="After a publication"):
        list(policy.look_at_publication(small))
    assert all(torch.equal(old, new) for old, new in zip(before, small.module.parameters(), strict=True))
    small.close()
