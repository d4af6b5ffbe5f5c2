"""Guards of many texts find what a list of alternatives would find, in a time that does not grow with the list."""

import re
import time

from hypothesis import example, given, settings
from hypothesis import strategies as st

from aepo_lightning.chat_formats.guard import Guard
from tests.support.builders import word_tokenizer

TOKENIZER = word_tokenizer()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sets(st.text(alphabet="abA<|\u0130", min_size=1, max_size=4), min_size=1, max_size=6),
    st.text(alphabet="abABx<|\u0130i", max_size=12),
)
@example({"<a>", "<a>b", "<"}, "<<A>B<a")
def test_the_longest_text_is_found_in_any_capitals(texts, text):
    longest_first = "|".join(re.escape(each) for each in sorted(texts, key=len, reverse=True))
    found = [match[0] for match in Guard(TOKENIZER, texts)._pattern.finditer(text)]
    assert found == re.findall(longest_first, text, re.IGNORECASE)


def test_thousands_of_control_tokens_cost_a_page_no_more_than_a_few():
    # Gemma has 6,242 of these.
    guard = Guard(TOKENIZER, ["<bos>", "[multimodal]", *(f"<unused{number}>" for number in range(10_000))])
    page = "<td>a</td> " * 20_000
    start = time.process_time()
    assert guard(page + "<UNUSED9999> <unused99999>") == f"{page}&#60;UNUSED9999> <unused99999>"
    assert time.process_time() - start < 5  # milliseconds; one text after the other takes a multiple of it
