"""`aepo-sft`: what the words of its command line mean, and what a folder must hold."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from aepo_lightning.app.build import build, build_chat_format, build_tools
from aepo_lightning.app.evaluation.saved_tools import save_tools
from aepo_lightning.app.saved_config import save_config
from aepo_lightning.app.saved_trees import opened_folder
from aepo_lightning.app.sft import build_sft_data
from aepo_lightning.app.sft_data import export_good, read_words
from aepo_lightning.contracts.checker import Verdict
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.results_file import ResultsFile
from aepo_lightning.policy.hf_folder import FolderWriter
from aepo_lightning.policy.source import PretrainedPolicy
from aepo_lightning.rollout import RolloutJournal
from aepo_lightning.training.sft import Selection
from tests.support.builders import ScriptedEngine, Turn, grow
from tests.support.composed import composed
from tests.support.evaluated import make_result, make_stamp
from tests.support.training import small_policy


def test_words_are_read():
    words = ("target=a.jsonl", "min_reward=0.5", "per_question=3", "is_well_formed=false", "prefer=shortest")
    expected = Selection(min_reward=0.5, per_question=3, is_well_formed=False, prefer="shortest")
    assert read_words(words) == (Path("a.jsonl"), False, expected)
    assert read_words(("target=a", "overwrite=true"))[1]


WRONG = {
    "no target": (["min_reward=1"], "`target` must name"),
    "unknown": (["target=a", "min_rewad=1"], "Did you mean min_reward"),
    "no word": (["target=a", "overwrite"], "must be written key=value, but got 'overwrite'"),
    "no number": (["target=a", "min_reward=much"], "`min_reward` must be a number, but got 'much'"),
    "half": (["target=a", "per_question=1.5"], "`per_question` must be a whole number"),
    "no flag": (["target=a", "overwrite=maybe"], "`overwrite` must be true or false"),
    "not a number": (["target=a", "min_reward=nan"], "`min_reward`"),
}


@pytest.mark.parametrize(("words", "problem"), WRONG.values(), ids=WRONG)
def test_words_without_meaning_are_refused(words, problem):
    with pytest.raises(ConfigError, match=problem):
        read_words(words)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with one file of rollouts, of which every second one was rewarded."""
    folder, cfg = tmp_path_factory.mktemp("run"), composed()
    save_config(cfg, folder / "config.yaml")
    policy, tools, task = build(cfg.model), build_tools(cfg.tools), build(cfg.data.task)
    chat_format = build_chat_format(cfg, policy.tokenizer, tools.specs)
    for number in range(4):
        shown = task.demonstration(number)

        def script(text, params, turns=shown.turns[::2]):
            done = text.count("</result>")
            return Turn(text=turns[done].text, ends=done + 1 == len(turns))

        engine = ScriptedEngine(script, tokenizer=policy.tokenizer)
        [tree] = grow(engine, [shown.question], tools=tools, chat_format=chat_format, budget=2)
        for leaf in tree.leaves:
            leaf.reward = RewardOutput(reward=float(number % 2), is_correct=True, is_well_formed=True)
        RolloutJournal(folder / "rollouts").append("train-00000-rank0", tree)
    return folder


def test_good_trajectories_of_a_run_become_data_that_its_cold_start_reads(run, tmp_path):
    target = tmp_path / "new" / "good.jsonl"
    said = export_good(run, [f"target={target}"])
    assert len([json.loads(line) for line in target.read_text().splitlines()]) == 2
    assert "8 trajectories, 2 good ones of 2 questions; left out:\n  4 with a reward below 1\n" in said
    limits = ("coldstart.limits.val_fraction=0", "coldstart.limits.max_unusable_fraction=0")
    cfg = composed("coldstart=sft", f"coldstart.data.path={target}", *limits)
    data = build_sft_data(cfg, build(cfg.model))
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, global_step=0)
    journal = list(RolloutJournal(run / "rollouts").read("train-00000-rank0"))
    expected = {tuple(path.token_ids) for tree in journal[1::2] for path in tree.trajectories()}
    [batch] = data.step(0).micro_batches
    assert {tuple(token for token in row if token) for row in batch.input_ids.tolist()} == expected


def test_a_target_that_is_there_stays_unless_that_is_said(run, tmp_path):
    target = tmp_path / "good.jsonl"
    target.write_text("mine")
    with pytest.raises(ConfigError, match="is there"):
        export_good(run, [f"target={target}"])
    assert target.read_text() == "mine"
    export_good(run, [f"target={target}", "overwrite=true"])
    assert target.read_text() != "mine"


def test_nothing_good_is_said_with_the_reasons(run, tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)must be a good trajectory, but of 8 traj.*8 with a reward below 2"):
        export_good(run, [f"target={tmp_path / 'a'}", "min_reward=2"])
    assert not (tmp_path / "a").exists()


def test_an_evaluation_is_read_with_the_policy_that_it_names(run, tmp_path):
    cfg = composed(f"+evaluated.run={run}")
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    save_tools(evaluation, build_tools(cfg.tools).specs)
    cfg.tools = {}  # what answered need not be here
    save_config(cfg, evaluation / "evaluation.yaml")
    shutil.copytree(run / "rollouts", evaluation / "rollouts")
    assert "2 good ones" in export_good(evaluation, [f"target={tmp_path / 'a.jsonl'}"])
    trees = list(RolloutJournal(run / "rollouts").read("train-00000-rank0"))
    with ResultsFile(evaluation / "results" / "bench.jsonl", make_stamp(num_samples=2)) as results:
        for number, tree in enumerate(trees[:3]):  # the judge likes the first one, which no reward was given for
            is_good = number == 0
            verdict = Verdict(score=float(is_good), is_correct=is_good)
            results.append(make_result(question_id=tree.question.question_id, verdict=verdict))
    said = export_good(evaluation, [f"target={tmp_path / 'b.jsonl'}"])
    assert (
        "8 trajectories, 1 good ones of 1 questions; left out:\n  5 without a reward\n  2 with a reward below 1" in said
    )


def test_the_model_of_an_evaluation_is_read_as_the_evaluation_read_it(tmp_path):
    policy, model = small_policy(), tmp_path / "model"
    FolderWriter(target=model, source=policy).write_model(policy.build_model().named_parameters())
    read_as = {"eos_tokens": ["</answer>"], "trust_remote_code": True}
    cfg = OmegaConf.create({"evaluated": {"source": str(model)}, "model": {"dtype": "auto", **read_as}})
    save_config(cfg, tmp_path / "evaluation.yaml")
    assert opened_folder(tmp_path, (), ())[1] == PretrainedPolicy(str(model), **read_as)


@pytest.mark.parametrize("has_config", [False, True], ids=["neither", "no rollouts"])
def test_other_folders_are_refused(tmp_path, has_config):
    if has_config:
        save_config(composed(), tmp_path / "config.yaml")
    problem = "must hold finished rollouts" if has_config else "folder of a run or an evaluation must be named"
    with pytest.raises(ConfigError, match=problem):
        export_good(tmp_path, [f"target={tmp_path / 'a'}"])
