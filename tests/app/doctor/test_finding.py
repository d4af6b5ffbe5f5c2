"""Checks run one after the other; what one raises or warns of is a line of its own, and parts are built once."""

import logging
from functools import partial
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from aepo_lightning.app.doctor.finding import Check, Level, NothingToLookAt, examine, passed, safely
from aepo_lightning.app.doctor.subject import Subject, examined
from aepo_lightning.errors import ConfigError


def looks(*found, error=None, warning=""):
    def look(subject):
        if warning:
            logging.getLogger("aepo_lightning.somewhere").warning("%s", warning)
        yield from found
        if error is not None:
            raise error

    return look


def levels(*checks):
    return [(name, str(finding.level), finding.line) for name, finding in examine(checks, None)]


def test_findings_come_in_order_with_what_they_are_about():
    assert levels(
        Check("disk", looks(passed("room"))), Check("tool", looks(passed("a", "one"), passed("b", "two")))
    ) == [
        ("disk", "pass", "room"),
        ("tool one", "pass", "a"),
        ("tool two", "pass", "b"),
    ]


@pytest.mark.parametrize(
    ("error", "level", "line"),
    [
        (ConfigError("`a` must be b,\n but got c."), "fail", "`a` must be b, but got c."),
        (KeyError("x"), "fail", "It must not raise, but: KeyError"),
        (NothingToLookAt("it needs the model, see above."), "skipped", "it needs the model, see above."),
    ],
    ids=["ours", "theirs", "nothing"],
)
def test_what_a_check_raises_is_its_line_and_the_next_one_runs(error, level, line):
    first, second, third = levels(Check("one", looks(passed("half"), error=error)), Check("two", looks(passed("b"))))
    assert (first, third) == (("one", "pass", "half"), ("two", "pass", "b"))
    assert second[:2] == ("one", level)
    assert second[2].startswith(line)


def test_one_of_several_things_that_breaks_keeps_none_from_being_looked_at():
    def look(subject):
        for name, error in (("a", None), ("b", OSError("gone")), ("c", None)):
            yield from safely(partial(looks(passed("well", name), error=error), subject), name)

    found = levels(Check("tool", look), Check("two", looks(passed("b"))))
    assert [(name, level) for name, level, _ in found] == [
        ("tool a", "pass"), ("tool b", "pass"), ("tool b", "fail"), ("tool c", "pass"), ("two", "pass")
    ]  # fmt: skip
    assert "OSError" in found[2][2]


def test_what_the_library_warns_of_is_a_warning_of_the_check_and_goes_nowhere_else(capsys):
    found = levels(Check("one", looks(passed("well"), warning="mind the gap")), Check("two", looks(passed("b"))))
    assert found == [("one", "pass", "well"), ("one", "warn", "mind the gap"), ("two", "pass", "b")]
    assert logging.getLogger("aepo_lightning").propagate
    assert capsys.readouterr().err == ""


def test_a_part_that_cannot_be_built_fails_once_and_is_skipped_then():
    cfg = OmegaConf.create(
        {"model": {"_target_": "aepo_lightning.policy.source.PretrainedPolicy", "name_or_path": "./x"}}
    )
    subject = Subject(cfg=cfg, folder=Path())

    def look(subject):
        yield passed(str(subject.policy))

    found = [finding for _, finding in examine([Check("model", look), Check("round trip", look)], subject)]
    assert [finding.level for finding in found] == [Level.FAIL, Level.SKIPPED]
    assert found[1].line == "it needs the model, see above."


def test_a_number_of_questions_without_meaning_is_refused():
    with (
        pytest.raises(ConfigError, match="`--questions` must be at least 1"),
        examined(OmegaConf.create(), Path(), num_questions=0),
    ):
        pass
