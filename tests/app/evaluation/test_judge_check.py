"""`aepo-eval judge-check` runs a judge on labelled answers, says how far it agrees, and keeps it."""

import json

import pytest

from aepo_lightning.app.evaluation.judge_check import judge_check, judge_from_words
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.evaluation.labelled import read_calibration
from aepo_lightning.rewards import JudgeLimits
from tests.support.extras import needs
from tests.support.judges import completion, judge_server, verdict

needs("openai", "judge")
WORDS = ["judge.base_url=http://127.0.0.1:9/v1", "judge.model=m"]


def labels(tmp_path, *rows):
    path = tmp_path / "labels.jsonl"
    lines = [
        json.dumps({"question": f"{index}?", "golds": ["x"], "answer": f"a{index}", "is_correct": label})
        for index, label in enumerate(rows)
    ]
    path.write_text("\n".join(lines))
    return path


def test_figures_are_printed_and_written(tmp_path, capsys):
    path = labels(tmp_path, True, True, False, False)
    words = ["correct", "incorrect", "incorrect", "maybe"]
    with judge_server(*(completion(verdict(word)) for word in words)) as server:
        url, price = f"judge.base_url={server.url}/v1", "judge.prices._target_=aepo_lightning.rewards.JudgePrices"
        more = [
            f"+{price}",
            "+judge.prices.prompt=1000.0",
            "+judge.prices.completion=0.0",
            "judge.limits.max_concurrent_calls=1",
        ]
        status = judge_check([url, "--labelled", str(path), "judge.model=m", "judge.template=paper", *more])
    printed = capsys.readouterr().out
    assert status == 0
    # Of three verdicts two agree. p_e = 1/3 * 2/3 + 2/3 * 1/3 = 4/9, kappa = (2/3 - 4/9) / (5/9) = 0.4.
    for text in (
        "4 answers to 4 questions, judged by m",
        "agreement    66.7 % [",
        "kappa        0.400 [",
        "1 (unreadable 1)",
    ):
        assert text in printed
    assert "took         4 calls (0 verdicts were kept), 360 + 40 tokens, cost 0.36" in printed
    found = read_calibration(tmp_path / "labels.judge_check.json")
    assert (found.judge["template"], found.abstentions) == ("paper", {"unreadable": 1})


def test_a_judge_that_is_down_ends_with_a_status_and_is_said(tmp_path, capsys):
    path, output = labels(tmp_path, True, False), tmp_path / "found.json"
    words = [*WORDS, "judge.limits.max_attempts=1"]
    assert judge_check(["--labelled", str(path), "--output", str(output), *words]) == 1
    printed = capsys.readouterr().out
    assert "none: the judge came to no verdict" in printed
    assert "2 (unreachable 2)" in printed
    assert read_calibration(output).agreement is None


def test_a_check_that_was_cut_off_goes_on_and_leaves_nothing_beside_its_file(tmp_path, monkeypatch):
    path = labels(tmp_path, True, False)
    with judge_server(completion(verdict())) as server:
        words = [f"judge.base_url={server.url}/v1", "judge.model=m", "--labelled", str(path)]
        with monkeypatch.context() as patch:
            patch.setattr("aepo_lightning.app.evaluation.judge_check.write_calibration", cut_off)
            with pytest.raises(KeyboardInterrupt):
                judge_check(words)
        judge_check(words)
        assert len(server.requests) == 2, "nothing is asked twice"
    assert {each.name for each in tmp_path.iterdir()} == {"labels.jsonl", "labels.judge_check.json"}


def cut_off(*_):
    raise KeyboardInterrupt


def test_settings_and_judges_of_ones_own_are_read(tmp_path):
    own = tmp_path / "judge"
    own.mkdir()
    (own / "strict.yaml").write_text(
        "defaults: [llm, _self_]\ntemplate:\n  _target_: aepo_lightning.rewards.JudgeTemplate\n  name: strict\n"
        "  instructions: Judge.\n  fields: {reason: Why., verdict: Which.}\n"
    )
    judge = judge_from_words([*WORDS, "judge=strict", "+judge.request.seed=3"], str(tmp_path))
    assert judge.identity["template"] == "strict"
    assert judge.identity["request"] == {"temperature": 0, "max_tokens": 2048, "seed": 3}


def test_the_configuration_has_the_defaults_of_the_class():
    assert judge_from_words(WORDS)._limits == JudgeLimits()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (WORDS[:1], "`judge.model` must be given, but got nothing"),
        (
            [*WORDS, "judge.modle=x"],
            "`judge.modle` must be a key of the config, but there is none. Did you mean `judge.model`",
        ),
        ([*WORDS, "judge=other"], "`judge` must be one of llm, .*but got other"),
        ([*WORDS, "judge.template=mine"], "`template` of a judge must be one of paper"),
        ([*WORDS, "judge.limits.deadline_s=0.0"], "`deadline_s` of a judge must be positive"),
        ([*WORDS, "judge._target_=builtins.dict"], "`judge` must be an `LLMJudge`, but got dict"),
    ],
)
def test_settings_that_do_not_fit_are_one_message(words, match, tmp_path):
    with pytest.raises(ConfigError, match=match):
        judge_check(["--labelled", str(labels(tmp_path, True)), *words])


def test_a_file_without_labels_is_refused_before_anything_is_asked(tmp_path):
    with pytest.raises(DataError, match="must be a JSONL file of labelled answers"):
        judge_check(["--labelled", str(tmp_path / "none"), *WORDS])
