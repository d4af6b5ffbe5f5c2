"""A question in one row."""

from dataclasses import replace
from itertools import combinations

import pytest

from aepo_lightning.app.view.questions import num_failures, question_row, shared_tokens
from aepo_lightning.app.view.token_text import TokenTexts
from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.policy.tokenizers import build_byte_tokenizer, build_word_tokenizer
from tests.support.viewed import HOSTILE, hostile_tree, large_tree

BYTES = build_byte_tokenizer()


def slowly(tree):
    """By all pairs."""
    start, found = tree.segments[0].end, []
    for one, other in combinations(tree.leaves, 2):
        if one.reward.reward != other.reward.reward:
            pairs = zip(tree.token_ids(one.segment_id), tree.token_ids(other.segment_id), strict=False)
            found.append(next(i for i, (a, b) in enumerate(pairs) if a != b) - start)
    return max(found, default=None)


@pytest.mark.parametrize("number", range(4))
def test_trajectories_of_different_rewards_part_where_all_pairs_say(number):
    tree = large_tree(number, BYTES, num_leaves=8, num_tokens=3)
    scored = [(leaf, leaf.reward.reward) for leaf in tree.leaves]
    assert shared_tokens(tree, scored) == slowly(tree)
    assert shared_tokens(tree, [(leaf, 1.0) for leaf in tree.leaves]) is None


def test_a_row_counts_failures_and_says_what_is_missing():
    tree = hostile_tree("a", "x", BYTES)
    row = question_row(tree)
    assert (row["spread"], row["failures"], row["rewards"]) == (0.5, 1, [1.0, 0.0])
    tree.leaves[0].stop_reason = StopReason.LENGTH
    tree.leaves[1].reward = replace(tree.leaves[1].reward, is_scored=False)
    assert num_failures(tree) == 3
    row = question_row(tree)
    assert (row["rewards"], row["spread"], row["shared"]) == ([1.0, None], 0.0, None)
    tree.leaves[0].reward = None
    assert question_row(tree)["rewards"] == [None, None]


@pytest.mark.parametrize("text", ["hé <think>x", "中文 \U0001f600!", *HOSTILE.values()])
def test_the_pieces_of_a_text_are_the_text(text):
    ids = BYTES.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False)
    pieces = TokenTexts(BYTES).pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == BYTES.decode(ids, clean_up_tokenization_spaces=False)


def test_words_keep_their_spaces_and_broken_bytes_are_shown_as_such():
    words = build_word_tokenizer(["go", "<think>"])
    assert TokenTexts(words).pieces([4, 3, 1]) == ["<think>", " go", " <eos>"]
    broken = [BYTES.encode("é", add_special_tokens=False)[0]] * 3
    assert TokenTexts(BYTES).pieces(broken) == ["\ufffd"] * 3
    assert TokenTexts(BYTES).pieces([]) == []
