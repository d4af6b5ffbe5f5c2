"""The experiment with a pretrained model: demonstrations are worth the reward, and every stage runs on a CPU."""

import csv
import json
import subprocess
import sys

import pytest

from aepo_lightning.app.build import build, build_data
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.tasks.asked import ask_demonstration
from aepo_lightning.training.demonstrations import encode_demonstration
from tests.support.builders import ScriptedEngine, Turn
from tests.support.composed import composed
from tests.support.paths import ROOT
from tests.support.smollm2 import FOLDER, needs_smollm2

SMALL_WORLD = ["data.task.world.num_things=300", "data.task.world.val_share=0.25", "data.num_val_questions=4"]
EXPERIMENT = ["+experiment=smollm2_search", *SMALL_WORLD]
TOKENIZERS = [
    pytest.param(["model=tiny_qwen3_bytes", "rollout.sampling.max_response_tokens=6000"], id="a token a byte"),
    pytest.param([f"model.name_or_path={FOLDER}"], id="smollm2", marks=needs_smollm2),
]
QUICK = [
    *("time_limit_s=null", "coldstart.num_steps=1", "coldstart.batch_size=2", "data.questions_per_iteration=2"),
    *("experience.questions_per_step=2", "algorithm.budget=2", "data.num_val_questions=2", "evaluation.num_samples=1"),
    *("evaluation.pass_at=[1]", "rollout.sampling.max_response_tokens=96", "trainer.max_epochs=1"),
]


def replayed(demonstration):
    """Return an engine's script that says what a demonstration says, turn by turn."""
    own = [turn.text for turn in demonstration.turns if turn.source is SegmentSource.POLICY]

    def script(text, params):
        number = text.count("</result>")
        return Turn(text=own[number], ends=number + 1 == len(own))

    return script


@pytest.mark.parametrize("words", TOKENIZERS)
def test_flawless_demonstrations_earn_the_reward_and_are_trained_as_they_are_rolled_out(tmp_path, words):
    cfg = composed(*EXPERIMENT, *words)
    tokenizer = build(cfg.model).tokenizer
    engine = ScriptedEngine(lambda *_: None, max_model_len=8000, tokenizer=tokenizer)
    datamodule = build_data(cfg, engine, build(cfg.algorithm), tmp_path)
    sampler = datamodule.prepare_sampler(tokenizer).for_evaluation(1)
    assert datamodule.task.num_flawless_demonstrations > 4
    for index in range(3):
        demonstration = ask_demonstration(datamodule.task, index)
        engine.script = replayed(demonstration)
        [tree] = sampler.rollout([demonstration.question], seed=0)
        [leaf] = tree.leaves
        assert leaf.reward.reward == 1.0, leaf.reward.reason
        assert leaf.num_tool_calls == demonstration.question.metadata["least_calls"]
        path = tree.trajectory(leaf)
        found = encode_demonstration(demonstration, sampler.parts.chat_format, tokenizer.eos_token_id)
        assert found == (path.token_ids, path.is_sampled)


@needs_smollm2
def test_trajectories_fit_the_lengths_of_the_experiment():
    cfg = composed(*EXPERIMENT, f"model.name_or_path={FOLDER}")
    tokenizer = build(cfg.model).tokenizer
    datamodule = build_data(cfg, ScriptedEngine(lambda *_: None, tokenizer=tokenizer), build(cfg.algorithm), ROOT)
    chat_format = datamodule.prepare_sampler(tokenizer).parts.chat_format
    limit = cfg.rollout.sampling.max_response_tokens
    for index in range(12):
        demonstration = ask_demonstration(datamodule.task, index)
        tokens, _ = encode_demonstration(demonstration, chat_format, tokenizer.eos_token_id)
        prompt = chat_format.encode_prompt(demonstration.question.messages)
        assert len(tokens) - len(prompt) < limit
        assert len(prompt) + limit < cfg.engine.max_model_len


def test_the_sizes_are_those_of_the_experiment_whatever_its_model_suggests():
    cfg = composed("+experiment=smollm2_search")
    assert (cfg.data.questions_per_iteration, cfg.data.num_val_questions, cfg.data.task.num_val_questions) == (
        32,
        256,
        256,
    )
    assert (cfg.experience.questions_per_step, cfg.algorithm.budget) == (8, 8)
    assert (cfg.coldstart.num_steps, cfg.coldstart.batch_size) == (150, 64)
    flawless = cfg.data.task.num_flawless_demonstrations
    assert 0 < flawless < cfg.coldstart.num_steps * cfg.coldstart.batch_size, "the last steps see imperfect ones"


@pytest.mark.slow
@needs_smollm2
def test_every_stage_of_the_experiment_runs_on_a_cpu(tmp_path):
    command = [sys.executable, "train.py", "+experiment=smollm2_search", *QUICK, f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    with (tmp_path / "run" / "curve.csv").open(encoding="utf-8") as file:
        kinds = [row["kind"] for row in csv.DictReader(file)]
    assert kinds == ["held out", "iteration", "held out"]
    assert (tmp_path / "run" / "curve.png").is_file()
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert 0 <= report["before"]["val/pass@1"] <= 1
    assert 0 <= report["after"]["val/pass@1"] <= 1
    assert report["training"]["train/entropy"] > 0
