"""`aepo-eval`: its words, its commands, its folder, and the table beside what training printed."""

import io

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from aepo_lightning.app.evaluation import command
from aepo_lightning.app.evaluation.command import SUB_COMMANDS, SubCommand, main
from aepo_lightning.app.evaluation.folder import CONFIG, choose_folder, evaluation_folder, load_evaluation
from aepo_lightning.app.evaluation.own_command import _settled, render_own, unequal
from aepo_lightning.app.evaluation.own_questions import HeldOut, as_logged, printed_by_training
from aepo_lightning.app.printed import plain_console, print_text
from aepo_lightning.errors import ConfigError, DataError
from tests.support.builders import make_question

RUN = {"seed": 0, "evaluation": {"num_samples": 4}, "engine": {"max_num_seqs": 2}, "tools": {}}


def test_a_sub_command_gets_the_words_after_its_name(monkeypatch):
    seen = []
    monkeypatch.setattr(SubCommand, "load", lambda self: lambda words: seen.append((self.function, list(words))))
    with pytest.raises(SystemExit) as ended:
        main(["compare", "a", "--json", "b"])
    assert ended.value.code == 0
    assert seen == [("compare", ["a", "--json", "b"])]


def test_every_command_is_listed(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "benchmarks=[gsm8k,hotpotqa]" in shown
    assert all(f"aepo-eval {name}" in shown for name in SUB_COMMANDS)


@pytest.mark.parametrize(
    ("words", "is_benchmarks", "expected"),
    [
        (["run", "seed=1"], False, ("run", ["seed=1"], [], None)),
        (
            ["m", "benchmarks=[a,b]", "--allow", "my", "seed=1"],
            True,
            ("m", ["benchmarks=[a,b]", "seed=1"], ["my"], None),
        ),
        (["m", "--config-dir", "c", "--strict", "benchmarks=a"], True, ("m", ["benchmarks=a"], [], "c")),
    ],
    ids=["run", "flag-between", "own-files"],
)
def test_words_decide_what_is_evaluated(words, is_benchmarks, expected, monkeypatch):
    seen = []
    monkeypatch.setattr(
        SubCommand, "load", lambda self: lambda *found, **flags: seen.append((self.module, found, flags))
    )
    main(words)
    assert seen == [("benchmarks" if is_benchmarks else "own_command", expected, {"strict": "--strict" in words})]


def test_a_mistake_is_one_message_and_no_trace(tmp_path):
    with pytest.raises(SystemExit, match=r"^ConfigError: The folder of a run, or a model with `benchmarks=`"):
        main([str(tmp_path / "nothing")])


def test_settings_of_a_run_are_those_of_its_configuration():
    cfg, places = _settled(OmegaConf.create(RUN), ["evaluation.num_samples=8", "output_dir='a=b'"], None)
    assert (cfg.evaluation.num_samples, places) == (8, {"output_dir": "a=b"})


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("evaluation.num_sample=8", r"there is none\. Did you mean `evaluation.num_samples`"),
        ("num_samples", r"must read key=value, but got 'num_samples'"),
        ("+a=1", r"must read key=value, but got '\+a=1'"),
    ],
)
def test_a_setting_that_a_run_does_not_have_is_refused(word, message):
    with pytest.raises(ConfigError, match=message):
        _settled(OmegaConf.create(RUN), [word], None)


def test_a_folder_belongs_to_one_evaluation_at_a_time_and_says_whose_it_is(tmp_path):
    folder = choose_folder(None, tmp_path, "Qwen/Qwen3-8B")
    assert folder == tmp_path / "Qwen-Qwen3-8B"
    cfg = OmegaConf.create({"evaluated": {"source": "Qwen/Qwen3-8B"}})
    with (
        evaluation_folder(folder, cfg),
        pytest.raises(ConfigError, match=r"`output_dir` must be a folder that no other run writes to"),
        evaluation_folder(folder, cfg),
    ):
        pass
    assert load_evaluation(folder) == cfg
    with pytest.raises(ConfigError, match=rf"must have an {CONFIG}, but .* has none"):
        load_evaluation(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with (
        pytest.raises(ConfigError, match=r"`output_dir` must not be the folder of a run"),
        evaluation_folder(tmp_path, cfg),
    ):
        pass


def test_figures_are_compared_to_the_last_digit_and_times_are_not():
    printed = as_logged({"val/reward": 0.1, "val/pass@1": 0.25, "val/tool_duration_p50_s": 1.0})
    assert unequal(as_logged({"val/reward": 0.1, "val/pass@1": 0.25}), printed) == []
    assert unequal({"val/reward": 0.1, "val/pass@1": 0.25}, printed) == ["val/reward"], "a float32 is not a float64"
    shown = render(printed, printed)
    assert "what training printed, to the last digit" in shown
    assert "1 figures differ from what training printed, such as reward." in render(
        {**printed, "val/reward": 0.2}, printed
    )
    assert "training" not in render(printed, {})


def render(found, printed):
    console = Console(file=io.StringIO(), width=200)
    console.print(render_own("quickstart", found, printed))
    return console.file.getvalue()


def test_figures_of_a_training_that_cannot_be_read_are_not_taken_for_none(tmp_path):
    assert printed_by_training(tmp_path) == {}
    for content, problem in (('{"val/reward": 0.', "Expecting|Unterminated|line 1"), ("[1]", "has a list")):
        (tmp_path / "evaluation_after.json").write_text(content)
        with pytest.raises(DataError, match=rf"evaluation_after.json must hold figures by name, but.*({problem})"):
            printed_by_training(tmp_path)


def test_questions_grow_in_the_portions_of_validation():
    questions = [make_question(f"q{number}") for number in range(5)]
    asked = HeldOut(questions=questions, chunk_size=2, num_samples=4, pass_at=(1, 4), seed=0)
    assert [(each.name, len(each.questions)) for each in asked.portions()] == [
        ("held_out-00000", 2),
        ("held_out-00001", 2),
        ("held_out-00002", 1),
    ]


def test_every_command_of_the_table_is_a_function():
    assert all(callable(each.load()) for each in SUB_COMMANDS.values())
    assert all(callable(each.load()) for each in command._EVALUATIONS.values())


def test_what_is_printed_keeps_its_brackets_and_its_long_lines(capsys):
    print_text("runs/x-[a]/" + "y" * 300)
    plain_console().print(render_own("x-[a]", {"val/reward": 0.5}, {}))
    assert capsys.readouterr().out.startswith("runs/x-[a]/" + "y" * 300 + "\nx-[a]")
