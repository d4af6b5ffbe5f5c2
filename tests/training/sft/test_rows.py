"""The tokens of conversations, which of them are trained, and what becomes of rows that cannot be used."""

import logging

import pytest

from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.tasks.conversations import ConversationFiles
from aepo_lightning.training.sft import RowLimits, read_rows
from tests.support.conversations import CALL, SEARCH, hermes, random_rows, row_of, tags, write

PLAIN = row_of(("user", "q"), ("assistant", "a"))
NOBODY = row_of(("user", "q"))


def read(folder, rows, parts=None, val=None, **limits):
    tokenizer, chat_format = parts or tags()
    source = ConversationFiles(
        path=write(folder / "a.jsonl", rows), val_path=None if val is None else write(folder / "v.jsonl", val)
    )
    return read_rows(source, chat_format, [SEARCH], tokenizer, RowLimits(**limits))


def test_what_is_trained_is_what_the_assistant_wrote_character_by_character(tmp_path):
    """Against spans that are put together from the words of each conversation, without the library."""
    tokenizer = tags()[0]
    drawn = random_rows(40)
    found = read(tmp_path, [row for row, _ in drawn]).train
    assert len(found) == len(drawn)
    for row, (_, spans) in zip(found, drawn, strict=True):
        text = "".join(part for part, _ in spans)
        is_own = [own for part, own in spans for _ in part.encode()]
        *body, end = row.token_ids.tolist()
        assert tokenizer.decode(body) == text
        sizes = [
            1 if len(name := tokenizer.convert_ids_to_tokens(token)) < 3 or name.startswith("<0x") else len(name)
            for token in body
        ]
        assert sum(sizes) == len(is_own)
        starts = [sum(sizes[:place]) for place in range(len(sizes))]
        assert row.is_trained.tolist() == [is_own[start] for start in starts] + [True]
        assert end == tokenizer.eos_token_id


def test_in_json_calls_every_end_of_a_message_of_the_assistant_is_trained(tmp_path):
    tokenizer, chat_format = parts = hermes()
    [row] = read(tmp_path, [row_of(("user", "q"), ("assistant", CALL), ("tool", "r"), ("assistant", "a"))], parts).train
    own = [token for token, is_own in zip(row.token_ids.tolist(), row.is_trained, strict=True) if is_own]
    end = [tokenizer.eos_token_id]
    assert own == chat_format.encode_text(CALL) + end + chat_format.encode_text("a") + end


def test_rows_that_cannot_be_used_are_counted_by_reason_with_the_first_places(tmp_path, caplog):
    long = row_of(("user", "q" * 90), ("assistant", "a"))
    control = row_of(("user", "q"), ("assistant", "a<eos>b"))
    rows = [PLAIN, NOBODY, *[{"text": "x"}] * 5, long, control]
    with caplog.at_level(logging.INFO, logger="aepo_lightning"):
        found = read(tmp_path, rows, max_length=60, max_unusable_fraction=1.0)
    assert (len(found.train), found.counts.num_rows, found.counts.num_unusable) == (1, 9, 8)
    assert str(found.counts).splitlines()[0] == "9 rows, 1 used as 1 demonstrations, 8 left out:"
    said = caplog.text
    assert "5 without a list of messages\n" in said
    assert [f"line {number}:" in said for number in (2, 3, 4, 5, 6, 8, 9)] == [True] * 4 + [False] + [True] * 2
    assert "1 without an assistant turn" in said
    assert "110 tokens, at most 60" in said
    assert "1 with control tokens in an assistant turn" in said


def test_too_many_of_them_refuse_the_data_with_the_reasons(tmp_path):
    rows = [PLAIN] * 3 + [NOBODY]
    assert len(read(tmp_path, rows, max_unusable_fraction=0.25).train) == 3
    with pytest.raises(
        DataError, match=r"(?s)At most 0\.2 of the rows.*1 without an assistant turn\n.*a\.jsonl, line 4"
    ) as caught:
        read(tmp_path, rows, max_unusable_fraction=0.2)
    assert "4 rows, 3 used" in str(caught.value)


def test_nothing_left_is_refused(tmp_path):
    with pytest.raises(DataError, match="must be a conversation to train on, but of 1 rows, 0 used"):
        read(tmp_path, [NOBODY], max_unusable_fraction=1.0)


def test_validation_rows_of_which_none_can_be_used_are_refused(tmp_path):
    rows = [row_of(("user", f"q{number}"), ("assistant", "a")) for number in range(30)]
    with pytest.raises(DataError, match=r"(?s)`coldstart\.data\.val_path` must have .* 1 without an assistant turn\n"):
        read(tmp_path, rows, val=[NOBODY], val_fraction=0.1)


def test_a_share_that_holds_out_the_only_question_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"(?s)to train on, but of 2 rows, 2 used.*Lower `coldstart.limits.val_frac"):
        read(tmp_path, [PLAIN] * 2, val_fraction=0.01)


def test_calls_in_another_format_are_refused(tmp_path):
    rows = [row_of(("user", "q"), ("assistant", CALL), ("tool", "r"), ("assistant", "a"))]
    with pytest.raises(ConfigError, match="must write calls as TagFormat reads them"):
        read(tmp_path, rows)


def test_all_demonstrations_of_a_held_out_question_are_held_out(tmp_path):
    rows = [row_of(("user", f"q{number % 10}"), ("assistant", f"a{number}")) for number in range(30)]
    found = read(tmp_path, rows, val_fraction=0.15)
    assert (len(found.train), len(found.val)) == (24, 6)  # two of ten questions: 0.15 of them, rounded up
    again = read(tmp_path, rows[::-1], val_fraction=0.15)
    assert {tuple(row.token_ids) for row in found.val} == {tuple(row.token_ids) for row in again.val}
    named = read(tmp_path, rows, val=[PLAIN], val_fraction=0.15)
    assert (len(named.train), len(named.val)) == (30, 1)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_length": 1},
        {"max_unusable_fraction": 1.1},
        {"max_unusable_fraction": -0.1},
        {"val_fraction": 1.0},
    ],
)
def test_limits_without_meaning_are_refused(limits):
    with pytest.raises(ConfigError, match=next(iter(limits))):
        RowLimits(**limits)
