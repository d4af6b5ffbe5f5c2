"""Only one JSON object with the fields that were asked for is a verdict; everything else is none."""

import json

import pytest

from aepo_lightning.rewards.judge import TEMPLATES
from aepo_lightning.rewards.judge.failures import JudgeFailure
from aepo_lightning.rewards.judge.reply import Reply, read_completion, read_judgement
from tests.support.judges import completion, verdict

PAPER = TEMPLATES["paper"]
HLE = {"extracted_final_answer": "Lyon", "reasoning": "Same.", "correct": "yes", "confidence": 100}


def ruling(content, template=PAPER):
    return read_judgement(Reply(content=content), template)


@pytest.mark.parametrize("word", ["correct", "incorrect", "abstain"])
def test_a_plain_object_is_a_verdict_with_its_reason(word):
    found = ruling(verdict(word, "Same city."))
    assert (found.ruling, found.reason) == (word, "Same city.")


@pytest.mark.parametrize(
    "content",
    [
        f"\n  {verdict('incorrect')} \r\n",
        f"<think>It may be {verdict('correct')}, or not.</think>\n{verdict('incorrect')}",
        f"```json\n{verdict('incorrect')}\n```",
        f"```\n{verdict('incorrect')}\n```",
    ],
    ids=["white space", "thoughts", "code block", "plain code block"],
)
def test_what_stands_round_an_object_without_saying_anything_is_no_prose(content):
    assert ruling(content).ruling == "incorrect"


@pytest.mark.parametrize(
    "content",
    [
        "correct",
        "not correct",
        "The answer is correct.",
        "Das ist richtig.",
        "\u6b63\u786e",
        f"Here is my verdict: {verdict()}",
        f"{verdict()} I hope this helps!",
        verdict() + verdict(),
        f"{verdict()}\n{verdict('incorrect')}",
        '{"reason": "r", "verdict": "incorrect", "verdict": "correct"}',
        verdict()[:-1],
        '{"reason": "r", "verdict": ',
        verdict("not correct"),
        verdict("Correct"),
        verdict("correct "),
        verdict("richtig"),
        verdict("\u6b63\u786e"),
        '{"reason": "r", "verdict": true}',
        '{"reason": "r", "verdict": ["correct"]}',
        '{"reason": 1, "verdict": "correct"}',
        '{"verdict": "correct"}',
        '{"reason": "r", "verdict": "correct", "final_verdict": "incorrect"}',
        f"[{verdict()}]",
        '"correct"',
        "null",
        '{"reason": "r", "verdict": "correct", "x": NaN}',
        "<html><body>correct</body></html>",
        "[" * 100_000,
        f"<think>{verdict()}",
        f"<think>a</think>{verdict()}</think>",
        f"<think>a</think><think>b</think>{verdict()}",
        f"```json\n{verdict()}\n``` ```json\n{verdict()}\n```",
        json.dumps(PAPER.schema()),
        "  ",
    ],
)
def test_anything_else_is_no_verdict(content):
    with pytest.raises(JudgeFailure) as caught:
        ruling(content)
    assert caught.value.kind == "unreadable"
    assert not caught.value.can_pass
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("template", "fields", "word"),
    [
        ("hle", HLE, "correct"),
        ("browsecomp", HLE | {"correct": "no"}, "incorrect"),
        ("simpleqa", {"reason": "r", "grade": "NOT_ATTEMPTED"}, "incorrect"),
        ("simpleqa", {"reason": "r", "grade": "CORRECT"}, "correct"),
    ],
)
def test_the_judges_of_benchmarks_have_fields_and_words_of_their_own(template, fields, word):
    assert ruling(json.dumps(fields), TEMPLATES[template]).ruling == word


@pytest.mark.parametrize("confidence", [101, -1, 50.0, "100", True, None])
def test_a_confidence_is_a_whole_number_of_percent(confidence):
    with pytest.raises(JudgeFailure, match="confidence"):
        ruling(json.dumps(HLE | {"confidence": confidence}), TEMPLATES["hle"])


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (completion(verdict(), finish="length"), "cut_off"),
        (completion(verdict(), finish="content_filter"), "withheld"),
        (completion(None, message={"refusal": "I cannot."}), "withheld"),
        (completion(None), "unreadable"),
        (completion([{"type": "text", "text": verdict()}]), "unreadable"),
    ],
)
def test_a_reply_that_was_cut_off_or_withheld_is_no_verdict_and_its_tokens_count(answer, kind):
    reply = read_completion(json.dumps(answer).encode(), "application/json")
    assert (reply.prompt_tokens, reply.completion_tokens) == (90, 10)
    with pytest.raises(JudgeFailure) as caught:
        read_judgement(reply, PAPER)
    assert caught.value.kind == kind


@pytest.mark.parametrize("usage", [None, [], {}, {"prompt_tokens": "9", "completion_tokens": -1}])
def test_tokens_that_are_not_counted_are_unknown(usage):
    reply = read_completion(json.dumps(completion("x", usage=usage)).encode(), "")
    assert reply.prompt_tokens is reply.completion_tokens is None


@pytest.mark.parametrize(
    "body",
    [
        b"<html>502</html>",
        b'{"choices": [{"mess',
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"error": {"message": "overloaded"}}',
        b'{"choices": null}',
        b'{"choices": []}',
        b'{"choices": [1]}',
        b'{"choices": [{}, {}]}',
        b'{"choices": [{"message": "correct"}]}',
        b"[" * 100_000,
    ],
)
def test_a_body_that_is_no_chat_completion_may_be_one_next_time(body):
    with pytest.raises(JudgeFailure) as caught:
        read_completion(body, "text/html; charset=utf-8")
    assert caught.value.kind == "malformed"
    assert caught.value.can_pass
