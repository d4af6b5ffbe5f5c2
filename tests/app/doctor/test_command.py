"""The command as it is typed: what it prints, as lines and as JSON, and its exit status."""

import json

import pytest

from tests.support.commands import run_command

MODULE = "aepo_lightning.app.doctor.command"
SMALL = ["model.architecture.num_hidden_layers=1", "algorithm.budget=4"]
pytestmark = pytest.mark.slow


def doctor(*words):
    return run_command("-m", MODULE, *words)


def levels(done):
    return {each["check"]: each["level"] for each in json.loads(done.stdout)["findings"]}


def test_the_main_job_passes(tmp_path):
    done = doctor("--json", *SMALL, f"output_root={tmp_path}")
    assert done.returncode == 0, done.stderr
    found = levels(done)
    assert found.pop("rollouts") == "skipped", "its cold start is yet to come"
    assert set(found.values()) == {"pass"}
    assert {"versions", "tool search", "clip range", "log-probs", "publication", "masks"} <= found.keys()
    assert list(tmp_path.iterdir()) == []


def test_a_policy_that_knows_nothing_gets_alarms_which_fail_if_that_is_asked_for(tmp_path):
    words = [*SMALL, "coldstart=none", f"output_root={tmp_path}", "--questions", "1"]
    done = doctor(*words, "--strict")
    assert done.returncode == 1
    (line, *_) = [line for line in done.stdout.splitlines() if line.split()[1] == "rollouts"]
    assert line.startswith("warn    rollouts        in 4 trajectories: ")
    assert done.stdout.splitlines()[-1].startswith("15 pass, ")


def test_a_chat_format_that_does_not_fit_fails(tmp_path):
    done = doctor("rollout=hermes", "--quick", f"output_root={tmp_path}")
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("fail")]
    assert len(failed) == 1
    assert failed[0].startswith("fail    round trip      The chat template must list the tools")


def test_words_that_do_not_compose_are_one_message():
    done = doctor("trainer.max_epoch=3")
    assert done.returncode == 1
    assert "Did you mean `trainer.max_epochs`" in done.stderr
    assert done.stdout == ""
