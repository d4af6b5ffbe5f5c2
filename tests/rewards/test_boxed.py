"""The last box of a text."""

import pytest

from aepo_lightning.rewards import last_boxed


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
