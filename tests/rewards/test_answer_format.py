"""Every branch of the format check, with a text that breaks that rule only."""

import pytest

from aepo_lightning.rewards import find_format_problem

THINK = "<think>t</think>"
SEARCH = "<search>q</search><result>r</result>"
PYTHON = "<python>c</python><result>r</result>"
ANSWER = r"<answer>\boxed{x}</answer>"
TAGS = ("search", "python")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(THINK + ANSWER, id="no-tools"),
        pytest.param(THINK + SEARCH + THINK + PYTHON + THINK + ANSWER, id="both-tools"),
        pytest.param(THINK + SEARCH + SEARCH + ANSWER, id="two-calls-in-a-row"),
        pytest.param(r"<think> t </think> <answer> \boxed{ e5 } </answer>", id="words-joined-by-spaces"),
        pytest.param(ANSWER + THINK, id="thoughts-after-the-answer"),
        pytest.param("</think><think>" + ANSWER, id="thinking-tags-are-only-counted"),
        pytest.param(THINK + "<result>unasked</result>" + ANSWER, id="unasked-result"),
        pytest.param(THINK + "</search></python>" + ANSWER, id="closing-tags-without-a-call"),
        pytest.param(THINK + "<search></result></search><result>r</result>" + ANSWER, id="stray-end-of-a-result"),
        pytest.param(THINK + "<browse>u</browse>" + ANSWER, id="tags-of-other-tools"),
        pytest.param(THINK + r"<answer>} \boxed{x</answer>", id="braces-of-the-box-are-not-parsed-here"),
        # `<python>` inside the search result is scanned too, and finds its own complete block.
        pytest.param(THINK + f"<search>q</search><result>{PYTHON}</result>" + ANSWER, id="call-inside-a-result"),
    ],
)
def test_well_formed_texts_have_no_problem(text):
    assert find_format_problem(text, TAGS) == ""


@pytest.mark.parametrize(
    "text, problem",
    [
        pytest.param(ANSWER, "no <think> block", id="no-think"),
        pytest.param("<think>t" + ANSWER, "<think> occurs 1 times but </think> 0", id="think-not-closed"),
        pytest.param(THINK + "</think>" + ANSWER, "<think> occurs 1 times but </think> 2", id="think-closed-twice"),
        pytest.param(THINK, "<answer> occurs 0 times", id="no-answer"),
        pytest.param(THINK + ANSWER + ANSWER, "<answer> occurs 2 times", id="two-answers"),
        pytest.param(THINK + r"<answer>\boxed{x}", "</answer> occurs 0 times", id="answer-not-closed"),
        pytest.param(THINK + ANSWER + "</answer>", "</answer> occurs 2 times", id="answer-closed-twice"),
        pytest.param(THINK + r"</answer>\boxed{x}<answer>", "</answer> stands before <answer>", id="answer-reversed"),
        pytest.param(
            THINK + SEARCH.replace("r<", ANSWER + "<") + ANSWER, "<answer> occurs 2 times", id="answer-in-a-result"
        ),
        pytest.param(THINK + "<search>q" + ANSWER, "A <search> call lacks", id="search-not-closed"),
        pytest.param(THINK + "<search>q</search>" + ANSWER, "A <search> call lacks", id="search-without-result"),
        pytest.param(THINK + "<search>q</search><result>" + ANSWER, "A <search> call lacks", id="result-not-closed"),
        pytest.param(THINK + SEARCH + "<search>q" + ANSWER, "A <search> call lacks", id="second-search-not-closed"),
        pytest.param(
            THINK + "<search>q<result>r</result></search>" + ANSWER,
            "tags of a <search> call and its <result> block are out of order",
            id="result-inside-the-call",
        ),
        pytest.param(
            THINK + "<search>q<result></search></result>" + ANSWER,
            "tags of a <search> call and its <result> block are out of order",
            id="crossing-tags",
        ),
        pytest.param(
            THINK + "<search>q<result>r</result></search><result>r</result>" + ANSWER,
            "tags of a <search> call and its <result> block are out of order",
            id="stray-result-before-the-right-one",
        ),
        pytest.param(THINK + "<python>c</python>" + ANSWER, "A <python> call lacks", id="python-without-result"),
        pytest.param(
            THINK + "<python><result></python></result>" + ANSWER, "tags of a <python> call", id="python-crossing"
        ),
        pytest.param(THINK + "<answer>x</answer>", "holds no", id="no-box"),
        pytest.param(THINK + r"\boxed{x}<answer>x</answer>", "holds no", id="box-before-the-answer"),
        pytest.param(THINK + r"<answer>\boxed{x</answer>}", "holds no", id="no-closing-brace-in-the-answer"),
    ],
)
def test_the_broken_rule_is_named(text, problem):
    assert problem in find_format_problem(text, TAGS)


def test_only_the_given_tools_are_checked():
    assert find_format_problem(THINK + "<python>c" + ANSWER, ("search",)) == ""
