"""Good trajectories of rollouts as conversations, which training reads as the tokens that were sampled."""

import json
from random import Random

import pytest

from aepo_lightning.chat_formats import HermesFormat, TagFormat, message_end_id
from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.errors import ConfigError
from aepo_lightning.tasks.conversations import ConversationFiles
from aepo_lightning.tools import DocumentSearch
from aepo_lightning.training.sft import GoodTrajectories, RowLimits, Selection, read_rows
from tests.support.builders import PLACES, ScriptedEngine, Turn, grow, make_question, word_tokenizer
from tests.support.chatml import CHATML, chatml_tokenizer
from tests.support.conversations import write

SPECS = (DocumentSearch().spec,)


def tag_script(text, params):
    """Up to two calls and an answer, with words by chance."""
    random = Random(params.seed)
    thought = f"<think> go {random.choice(PLACES)} {random.choice(PLACES)} {random.choice(PLACES)} </think>"
    if text.count("</result>") < random.randrange(3):
        return Turn(text=f"{thought} <search> {random.choice(PLACES)} </search>")
    return Turn(text=f"{thought} <answer> \\boxed{{ {random.choice(PLACES)} }} </answer>", ends=True)


def json_script(text, params):
    """The same with up to two calls in a turn; thoughts that the template has opened are closed only."""
    random = Random(params.seed)
    opening = "" if text.endswith("<think>\n") else "<think>"
    thought = f"{opening}\n{random.choice(PLACES)} {random.random()}</think>\n"
    call = json.dumps({"name": "search", "arguments": {SPECS[0].text_parameter: random.choice(PLACES)}})
    if text.count("<tool_response>") < 3:
        return Turn(text=thought + f"<tool_call>{call}</tool_call>" * random.randint(1, 2), ends=True)
    return Turn(text=f"{thought}done", ends=True)


FORMATS = {
    "tags": (tag_script, word_tokenizer, TagFormat),
    "json": (json_script, chatml_tokenizer, HermesFormat),
    "json, thoughts opened": (
        json_script,
        lambda: chatml_tokenizer(CHATML.replace("assistant\\n", "assistant\\n<think>\\n")),
        HermesFormat,
    ),
}


class AnyReward:
    async def __call__(self, sample):
        return RewardOutput(reward=float(len(sample.tool_calls)), is_correct=True, is_well_formed=True)


def rolled_out(style, num_questions=3):
    script, build_tokenizer, kind = FORMATS[style]
    tokenizer = build_tokenizer()
    chat_format = kind(tokenizer, SPECS, system_prompt="none")
    engine = ScriptedEngine(script, tokenizer=tokenizer, max_model_len=4000)
    questions = [make_question(f"q{number}", f"find e{number}") for number in range(num_questions)]
    trees = grow(engine, questions, chat_format=chat_format, reward=AnyReward(), budget=6, max_response_tokens=3000)
    return trees, chat_format, tokenizer


def collected(trees, chat_format, tokenizer, **selection):
    good = GoodTrajectories(
        selection=Selection(**selection), chat_format=chat_format, specs=SPECS, end_token_id=message_end_id(tokenizer)
    )
    good.add("train-00000-rank0.jsonl", trees)
    return good


@pytest.mark.parametrize("style", FORMATS)
def test_training_reads_the_tokens_that_were_sampled(style, tmp_path):
    trees, chat_format, tokenizer = rolled_out(style)
    good = collected(trees, chat_format, tokenizer, min_reward=0.0, per_question=99)
    path = write(tmp_path / "good.jsonl", good.rows())
    rows = read_rows(ConversationFiles(path=path), chat_format, SPECS, tokenizer, RowLimits(max_unusable_fraction=0.0))
    found = {(*row.token_ids.tolist(), *row.is_trained.tolist()) for row in rows.train}
    expected = {(*each.token_ids, *each.is_sampled) for tree in trees for each in tree.trajectories()}
    assert found == expected
    assert max(leaf.num_tool_calls for tree in trees for leaf in tree.leaves) >= 2


def test_where_a_string_ended_a_trajectory_the_end_of_the_message_is_learned_too(tmp_path):
    trees, chat_format, tokenizer = rolled_out("tags", 1)
    for leaf in trees[0].leaves:
        assert trees[0].segments[leaf.segment_id].token_ids.pop() == tokenizer.eos_token_id
    good = collected(trees, chat_format, tokenizer, min_reward=0.0, per_question=99)
    path = write(tmp_path / "good.jsonl", good.rows())
    rows = read_rows(ConversationFiles(path=path), chat_format, SPECS, tokenizer, RowLimits()).train
    found = {tuple(row.token_ids.tolist()) for row in rows}
    assert found == {(*each.token_ids, tokenizer.eos_token_id) for each in trees[0].trajectories()}


def test_a_row_says_what_is_known_of_its_trajectory():
    trees, *parts = rolled_out("tags", 1)
    [row] = collected(trees, *parts, min_reward=1.0).rows()
    assert row["messages"][0] == {"role": "user", "content": "find e0"}
    assert {message["role"] for message in row["messages"][1:]} == {"assistant", "tool"}
    assert row["messages"][2]["name"] == "search"
    assert row["reward"] == max(leaf.reward.reward for leaf in trees[0].leaves)
    assert (row["question_id"], row["answers"], row["source"]) == ("q0", ["e2"], "train-00000-rank0.jsonl")
    assert json.loads(json.dumps(row)) == row


def test_the_best_of_each_question_come_first_and_nothing_twice():
    trees, *parts = rolled_out("tags")
    good = collected([*trees, *trees], *parts, min_reward=0.0, per_question=2)
    rows = good.rows()
    assert [row["question_id"] for row in rows] == ["q0", "q0", "q1", "q1", "q2", "q2"]
    assert good.left_out["that were there already"] >= 18
    for tree, pair in zip(trees, (rows[0:2], rows[2:4], rows[4:6]), strict=True):
        best = sorted((leaf.reward.reward for leaf in tree.leaves), reverse=True)
        assert pair[0]["reward"] == best[0] >= pair[1]["reward"]
    shortest = collected(trees, *parts, min_reward=0.0, prefer="shortest").rows()
    assert [row["reward"] for row in shortest] == [min(leaf.reward.reward for leaf in tree.leaves) for tree in trees]
    assert "36 trajectories, 6 good ones of 3 questions; left out:" in good.summary()


OBJECTIONS = {
    "below": ({"reward": RewardOutput(reward=0.5, is_correct=False, is_well_formed=True)}, "a reward below 1"),
    "malformed": ({"reward": RewardOutput(reward=1.0, is_correct=True, is_well_formed=False)}, "not well formed"),
    "unscored": (
        {"reward": RewardOutput(reward=1.0, is_correct=False, is_well_formed=True, is_scored=False)},
        "without a reward",
    ),
    "nothing": ({"reward": None}, "without a reward"),
    "cut": ({"stop_reason": StopReason.LENGTH}, "did not end by themselves"),
    "no calls": ({"num_tool_calls": 0}, "fewer than 1 tool calls"),
}


@pytest.mark.parametrize(("changes", "reason"), OBJECTIONS.values(), ids=OBJECTIONS)
def test_what_is_not_good_is_counted_by_reason(changes, reason):
    trees, *parts = rolled_out("tags", 1)
    for leaf in trees[0].leaves:
        leaf.reward = RewardOutput(reward=1.0, is_correct=True, is_well_formed=True)
        leaf.num_tool_calls = 1
        for name, value in changes.items():
            setattr(leaf, name, value)
    good = collected(trees, *parts, min_tool_calls=1)
    assert good.rows() == []
    assert len(good.left_out) == 1
    assert reason in good.summary()


def test_a_trajectory_whose_text_is_encoded_otherwise_is_left_out():
    trees, chat_format, tokenizer = rolled_out("json", 1)
    for segment in trees[0].segments:
        if segment.token_ids[:1] == tokenizer.encode("<think>", add_special_tokens=False):
            spelt_out = [tokenizer.convert_tokens_to_ids(letter) for letter in "<think>"]
            segment.token_ids = [*spelt_out, *segment.token_ids[1:]]  # the same text, letter by letter
    good = collected(trees, chat_format, tokenizer, min_reward=0.0)
    assert good.rows() == []
    assert good.left_out["whose text reads as other tokens"] == 6


@pytest.mark.parametrize(
    "selection",
    [
        {"min_reward": float("nan")},
        {"per_question": 0},
        {"min_tool_calls": -1},
        {"prefer": "best"},
    ],
)
def test_selections_without_meaning_are_refused(selection):
    with pytest.raises(ConfigError, match=f"`{next(iter(selection))}`"):
        Selection(**selection)
