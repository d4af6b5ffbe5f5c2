"""The folder of an evaluation has benchmarks of one model under settings that a replay finds there, and says so."""

import pytest
from omegaconf import OmegaConf

from aepo_lightning.app.evaluation.folder import CONFIG, evaluation_folder, extend_suite, load_evaluation
from aepo_lightning.app.evaluation.saved_tools import RecordedTools, save_tools
from aepo_lightning.app.saved_config import read_config
from aepo_lightning.contracts.tool import ToolSpec
from aepo_lightning.errors import ConfigError
from tests.support.evaluated import make_results, write_evaluation


def settings(*names, **changes):
    usual = {"model": {"dtype": "auto"}, "sampling": {}, "num_samples": None, "seed": 0}
    usual |= {"rollout": {"chat_format": {"system_prompt": "auto"}}, "engine": {"max_model_len": 64}}
    return OmegaConf.create(usual | {"suite": {name: {"title": name} for name in names}} | changes)


def add(folder, cfg):
    with evaluation_folder(folder, cfg):
        extend_suite(folder, cfg)


@pytest.fixture
def folder(tmp_path):
    """An evaluation that has results of riddles."""
    add(tmp_path, settings("riddles"))
    return write_evaluation(tmp_path, make_results("1"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"dtype": "float16"}}, r"model\.dtype: auto -> float16"),
        ({"sampling": {"temperature": 0.5}}, r"sampling\.temperature: \(not there\) -> 0\.5"),
        ({"num_samples": 4}, "num_samples: None -> 4"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"rollout": {"chat_format": {"system_prompt": "none"}}}, r"rollout\.chat_format\.system_prompt: auto -> none"),
        ({"engine": {"max_model_len": 128}}, r"engine\.max_model_len: 64 -> 128"),
    ],
)
def test_benchmarks_are_added_under_the_settings_that_are_there(changes, message, folder):
    before = (folder / CONFIG).read_bytes()
    with pytest.raises(ConfigError, match=rf"these differ:\n  {message}\nGive the saved values"):
        add(folder, settings("others", **changes))
    assert (folder / CONFIG).read_bytes() == before
    add(folder, settings("others"))
    assert set(load_evaluation(folder).suite) == {"riddles", "others"}


def test_a_benchmark_without_results_takes_the_settings_that_it_is_asked_under(folder):
    add(folder, settings("others"))
    add(folder, settings(suite={"others": {"title": "anew"}, "riddles": {"title": "anew"}}))
    saved = load_evaluation(folder).suite
    assert (saved.others.title, saved.riddles.title) == ("anew", "riddles")


def test_a_command_that_made_no_results_leaves_its_settings_to_the_next(tmp_path):
    add(tmp_path, settings("riddles", seed=1))
    add(tmp_path, settings("others", seed=2))
    assert read_config(tmp_path / CONFIG) == settings("others", seed=2)


def test_questions_of_a_run_and_benchmarks_have_folders_of_their_own(folder, tmp_path):
    own = OmegaConf.create({"evaluated": {"run": "runs/a"}})
    with pytest.raises(ConfigError, match=r"for a run's own questions, but .* has results of benchmarks"):
        add(folder, own)
    other = write_evaluation(tmp_path / "own", make_results("1"))
    with evaluation_folder(other, own):
        pass
    with pytest.raises(ConfigError, match=r"for benchmarks, but .* has results of a run's own questions"):
        add(other, settings("riddles"))


def test_tools_say_of_themselves_what_they_said_for_the_results_that_are_there(folder):
    def search(text):
        return ToolSpec(name="search", description=text, parameters={"properties": {}})

    save_tools(folder, [search("Looks.")])
    save_tools(folder, [search("Looks.")])
    with pytest.raises(ConfigError, match=r"these differ:\n  tools\.search\.description: Looks\. -> Finds\."):
        save_tools(folder, [search("Finds.")])
    with pytest.raises(ConfigError, match=r"  tools\.search: .* -> \(not there\)"):
        save_tools(folder, [])
    assert RecordedTools.load(folder).specs[0].description == "Looks."
