"""`aepo-eval MODEL benchmarks=[...]`: from words to results, once, replayed, judged anew, killed and continued."""

import json
import os
import shutil
import signal
import time

import pytest
from omegaconf import OmegaConf

from aepo_lightning.app.evaluation.benchmarks import build_choices, evaluate_benchmarks, settle_context
from aepo_lightning.app.evaluation.command import main
from aepo_lightning.app.evaluation.composing import compose_suite, known_benchmarks, named_benchmarks
from aepo_lightning.app.evaluation.judges import ChosenCheckers, build_judge, choose_checker
from aepo_lightning.app.evaluation.rejudge import rejudge_evaluation
from aepo_lightning.app.evaluation.replay import replay_evaluation
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.evaluation.results_file import read_evaluation
from aepo_lightning.policy.hf_folder import FolderWriter
from tests.support.benchmarks import SameWords, protocol, riddles, write_config
from tests.support.commands import Command
from tests.support.training import small_policy

ASKED = {"_target_": "tests.support.benchmarks.Asked"}
WORDS = ["benchmarks=[riddles]", "tools=search", "num_threads=1", "engine.max_num_seqs=8"]


def test_benchmarks_are_known_by_their_files_and_a_mistake_has_a_suggestion(tmp_path):
    folder = str(write_config(tmp_path))
    assert set(known_benchmarks(folder)) - set(known_benchmarks()) == {"riddles"}
    known = known_benchmarks(folder)
    assert named_benchmarks("riddles", known) == ["riddles"]
    assert named_benchmarks(["riddles", "riddles"], known) == ["riddles"]
    assert named_benchmarks("all", known) == known
    with pytest.raises(
        ConfigError, match=r"must name files of conf/benchmark, but got 'ridles'\. Did you mean riddles\?"
    ):
        named_benchmarks(["ridles"], known)
    with pytest.raises(ConfigError, match=r"must name one at least"):
        named_benchmarks([], known)


@pytest.fixture(scope="module")
def composed_suite(tmp_path_factory):
    folder = str(write_config(tmp_path_factory.mktemp("conf")))
    return compose_suite([*WORDS, "suite.riddles.protocol.num_samples=3", "+sampling.temperature=0.5"], folder)


def test_a_benchmark_stands_below_the_suite_and_takes_settings(composed_suite):
    assert composed_suite.suite.riddles.protocol.num_samples == 3
    assert build_choices(composed_suite).sampling == {"temperature": 0.5}
    assert (composed_suite.judge, composed_suite.engine.max_model_len) == (None, None)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("num_sample=3", r"`num_sample` must be a key of the config.* Did you mean `num_samples`"),
        (("engine=vllm", "engine.gpu_memory_utilisation=0.5"), r"Did you mean `engine.gpu_memory_utilization`"),
        ("suite.riddles.protocol.num_sample=3", r"Did you mean `suite.riddles.protocol.num_samples`"),
        ("engine=vlm", r"`engine` must be one of .*vllm"),
        ("benchmarks=[nothing]", r"must name files of conf/benchmark"),
    ],
)
def test_settings_that_do_not_fit_are_explained(word, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        compose_suite([*WORDS, *([word] if isinstance(word, str) else word)], str(write_config(tmp_path)))


def test_the_context_is_that_of_the_protocols_or_what_the_model_has():
    suite = [riddles(), riddles(protocol=protocol(max_model_len=4096))]
    cfg = OmegaConf.create({"engine": {"max_model_len": None}})
    settle_context(cfg, suite, small_policy(max_position_embeddings=128))
    assert cfg.engine.max_model_len == 128
    cfg.engine.max_model_len = None
    settle_context(cfg, suite[:1], small_policy(max_position_embeddings=128))
    assert cfg.engine.max_model_len == 64
    cfg.engine.max_model_len = 32
    settle_context(cfg, suite, small_policy())
    assert cfg.engine.max_model_len == 32


def test_a_judge_is_asked_where_a_benchmark_has_one_and_gets_its_rule():
    cfg = OmegaConf.create({"judge": ASKED})
    assert choose_checker(cfg, riddles()).rule == SameWords()
    assert choose_checker(cfg, riddles(judge="")) == SameWords()
    assert choose_checker(OmegaConf.create({"judge": None}), riddles()) == SameWords()
    other = {"_target_": "tests.support.benchmarks.SameWords", "accepts_empty": True}
    assert build_judge(OmegaConf.create(other), riddles()) == SameWords(accepts_empty=True)
    with pytest.raises(ConfigError, match=r"`judge` must be an `AnswerChecker`, but .* gave Riddles"):
        build_judge(OmegaConf.create({"_target_": "tests.support.benchmarks.Riddles"}), riddles())


def test_a_judge_is_built_once_and_says_what_it_took():
    node = {"_target_": "aepo_lightning.rewards.judge.LLMJudge", "base_url": "http://127.0.0.1:1/v1", "model": "m"}
    checkers = ChosenCheckers(OmegaConf.create({"judge": node | {"prices": None}}))
    assert checkers(riddles()) is checkers(riddles())
    checkers(riddles(name="rule", judge=""))
    assert checkers.work() == ["riddles: its judge took 0 calls (0 verdicts were kept), 0 + 0 tokens."]


def write_model(folder):
    policy = small_policy(head_dim=32)
    FolderWriter(target=folder, source=policy).write_model(policy.build_model().named_parameters())
    return folder


def words_for(root):
    return [*WORDS, f"output_root={root / 'eval'}"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model, a folder of configurations, and the evaluation of the model in one piece."""
    root = tmp_path_factory.mktemp("whole")
    write_model(root / "model")
    write_config(root / "conf")
    evaluate_benchmarks(str(root / "model"), words_for(root), config_dir=str(root / "conf"))
    return root


def verdicts(folder):
    (run,) = read_evaluation(folder)
    return {each.pair: (each.response_text, each.verdict) for each in run.results}


@pytest.mark.slow
def test_results_lie_below_the_name_of_the_model_and_the_same_command_makes_none_twice(whole, capsys):
    target = whole / "eval" / "model"
    before = (target / "results" / "riddles.jsonl").read_bytes()
    assert len(verdicts(target)) == 6
    found = evaluate_benchmarks(str(whole / "model"), words_for(whole), config_dir=str(whole / "conf"))
    assert [each.pair[1] for each in found["riddles"]] == [0, 1] * 3
    assert (target / "results" / "riddles.jsonl").read_bytes() == before
    report = json.loads((target / "report.json").read_text())
    assert report["riddles"]["summary"]["num_trajectories"] == before.count(b"\n") - 1
    assert (target / "report.md").is_file()
    assert (target / "pass_at_k.png").is_file()
    assert "riddles" in capsys.readouterr().out


@pytest.mark.slow
def test_other_settings_in_the_same_folder_are_refused_by_name(whole):
    words = [*words_for(whole), "+sampling.temperature=0.5", "--config-dir", str(whole / "conf")]
    with pytest.raises(SystemExit, match=r"ConfigError: .*these differ:\n +sampling.temperature: 1.0 -> 0.5"):
        main([str(whole / "model"), *words])


@pytest.mark.slow
def test_an_evaluation_replays_elsewhere_without_tools_token_by_token(whole, tmp_path):
    copy = shutil.copytree(whole / "eval" / "model", tmp_path / "copy")
    model = shutil.copytree(whole / "model", tmp_path / "moved" / "model")
    allowed = ("tests.support.benchmarks",)
    found = list(replay_evaluation(copy, str(model), allowed=allowed))
    assert len(found) == 3
    assert [each.difference for each in found] == [None] * 3
    assert sum(each.num_tokens for each in found) > 0
    with pytest.raises(ConfigError, match=r"would call tests.support.benchmarks"):
        list(replay_evaluation(copy, str(model)))
    with pytest.raises(ConfigError, match=r"must be one of the files"):
        list(replay_evaluation(copy, str(model), ["gsm8k"], allowed=allowed))
    (copy / "tools.json").unlink()
    with pytest.raises(DataError, match=r"must say which tools there were"):
        list(replay_evaluation(copy, str(model), allowed=allowed))


@pytest.mark.slow
def test_the_same_trajectories_are_judged_anew_beside_the_old_verdicts(whole):
    target, allowed = whole / "eval" / "model", ("tests.support.benchmarks",)
    before = (target / "results" / "riddles.jsonl").read_bytes()
    judge = ["judge=own", "judge._target_=tests.support.benchmarks.Asked"]
    anew = rejudge_evaluation(target, judge, allowed=allowed)
    assert anew.parent == target / "rejudged"
    assert (target / "results" / "riddles.jsonl").read_bytes() == before
    old, new = verdicts(target), verdicts(anew)
    assert {pair: text for pair, (text, _) in old.items()} == {pair: text for pair, (text, _) in new.items()}
    assert all(verdict.is_correct for _, verdict in new.values())
    assert rejudge_evaluation(target, judge, allowed=allowed) == anew, "the same judge goes on where it was"
    other = ["judge=own", "judge._target_=tests.support.benchmarks.SameWords"]
    with pytest.raises(ConfigError, match=r"checker.part: .*Asked -> .*SameWords"):
        rejudge_evaluation(target, other, anew.name, allowed=allowed)
    with pytest.raises(ConfigError, match=r"must begin with `judge`, but got `seed`"):
        rejudge_evaluation(target, ["seed=1"], allowed=allowed)
    with pytest.raises(ConfigError, match=r"must name who looks at the answers"):
        rejudge_evaluation(target, ["judge={}"], allowed=allowed)


@pytest.mark.slow
def test_an_evaluation_that_is_killed_goes_on_and_ends_as_one_that_was_not(whole, tmp_path):
    words = [f"output_root={tmp_path}", *WORDS, "--config-dir", str(whole / "conf")]
    command = ["-m", "aepo_lightning.app.evaluation.command", whole / "model", *words]
    journal = tmp_path / "model" / "rollouts" / "riddles.steps.jsonl"
    for number in (1, 3, 6):
        process = Command(*command)
        deadline = time.monotonic() + 100
        while process.returncode is None and (not journal.exists() or journal.read_bytes().count(b"\n") < number):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
    done = Command(*command).wait()
    assert done.returncode == 0, done.stderr
    assert verdicts(tmp_path / "model") == verdicts(whole / "eval" / "model")
    assert not journal.exists()


@pytest.mark.slow
def test_ctrl_c_ends_it_by_its_signal_and_what_was_finished_is_kept(whole, tmp_path):
    many = "+suite.riddles.source.num_questions=40"
    words = [f"output_root={tmp_path}", *WORDS, many, "--config-dir", str(whole / "conf")]
    process = Command("-m", "aepo_lightning.app.evaluation.command", whole / "model", *words)
    results = tmp_path / "model" / "results" / "riddles.jsonl"
    deadline = time.monotonic() + 100
    while not (results.exists() and results.read_bytes().count(b"\n") > 2):
        assert process.returncode is None, process.stderr
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGINT)
    process.wait()
    assert process.returncode == 130, process.stderr
    assert "What was finished is kept: the same command goes on." in process.stderr
    lines = results.read_text().splitlines()
    assert len(lines) > 2
    assert all(json.loads(line) for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda model: [path.unlink() for path in model.glob("*token*")], r"must hold a tokenizer"),
        (lambda model: shutil.rmtree(model), r"must be a folder or a model"),
    ],
    ids=["no-tokenizer", "no-folder"],
)
def test_a_model_that_cannot_be_read_is_refused_before_anything_is_written(broken, message, whole, tmp_path):
    model = shutil.copytree(whole / "model", tmp_path / "model")
    broken(model)
    with pytest.raises(SystemExit, match=message):
        main([str(model), *WORDS, f"output_root={tmp_path / 'eval'}", "--config-dir", str(whole / "conf")])
    assert not (tmp_path / "eval").exists()
