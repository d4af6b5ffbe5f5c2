"""The last box of a text."""

from random import Random

import pytest

from aepo_lightning.rewards import last_boxed
from aepo_lightning.rewards.boxed import official_boxed


@pytest.mark.parametrize(
    "text, content",
    [
        pytest.param(r"so \boxed{42}.", "42", id="plain"),
        pytest.param(r"\boxed{ e5 }", " e5 ", id="inner-spaces-stay"),
        pytest.param(r"\boxed{1} and \boxed{2}", "2", id="last-of-two"),
        pytest.param(r"\boxed{\frac{1}{2}} }", r"\frac{1}{2}", id="nested-braces"),
        pytest.param(r"\boxed{\boxed{5}}", "5", id="box-in-a-box"),
        pytest.param(r"\boxed{\{1, 2\}}", r"\{1, 2\}", id="escaped-pair"),
        pytest.param("\\boxed{a\nb}", "a\nb", id="line-break"),
        pytest.param(r"\boxed{}", "", id="empty-box"),
        pytest.param("no box", None, id="none"),
        pytest.param(r"\boxed {3}", None, id="space-before-the-brace"),
        pytest.param("\x08oxed{3}", None, id="backspace-instead-of-backslash-b"),
        pytest.param(r"\boxed{1", None, id="unclosed"),
        pytest.param(r"\boxed{\{}", None, id="escaped-brace-counts"),
        pytest.param(r"\boxed{1} then \boxed{2", None, id="unclosed-last-hides-the-first"),
        pytest.param("", None, id="empty-text"),
    ],
)
def test_the_last_opening_decides(text, content):
    assert last_boxed(text) == content


def released_answer(text):
    """The released extraction, letter by letter: first what follows a box and a space, else the last box."""
    starts = [place for place in range(len(text)) if text[place : place + 6] == "\\boxed"]
    spaced = [place for place in starts if text[place + 6 : place + 7] == " "]
    if spaced:
        found = []
        for letter in text[spaced[-1] + 7 :]:
            if letter == "$":
                break
            found.append(letter)
        return "".join(found)
    if not starts or text[starts[-1] + 6 : starts[-1] + 7] != "{":
        return None
    depth, found = 0, []
    for letter in text[starts[-1] + 6 :]:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        found.append(letter)
        if depth == 0:
            return "".join(found)[1:-1]
    return None


PIECES = ["\\boxed", "\\boxed{", "\\boxed ", "{", "}", "7", " ", "$", "a", "\n"]


def test_the_released_extraction_is_met_on_random_texts():
    random = Random(0)
    texts = ["".join(random.choices(PIECES, k=random.randint(1, 9))) for _ in range(2000)]
    assert [official_boxed(text) for text in texts] == [released_answer(text) for text in texts]
    assert sum(official_boxed(text) != last_boxed(text) for text in texts) > 200


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} or \boxed 7", "7"),
        (r"$\boxed 7$, that is \boxed{1}", "7"),
        (r"\boxed{1} or \boxed7", None),
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{1", None),
    ],
)
def test_what_the_released_reward_reads(text, content):
    assert official_boxed(text) == content
