import re
from dataclasses import replace

import pytest

from aepo_lightning.contracts.question import DemonstrationSource, SegmentSource, Task
from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.tokenizers import build_byte_tokenizer
from aepo_lightning.tasks.arithmetic import ArithmeticTask


def parse(question):
    """Return the start value and the operations of a question, read from its text alone."""
    start, steps = re.fullmatch(r"Start (\d+)\. Then (.+)\.", question.messages[-1].content).groups()
    return int(start), [(step[0], int(step[1:])) for step in steps.split(", ")]


def compute(value, sign, operand):
    """Reference for one operation: repeated addition for products."""
    if sign == "*":
        return sum(value for _ in range(operand))
    return value + operand if sign == "+" else value - operand


def test_is_a_task_and_a_demonstration_source():
    task = ArithmeticTask()
    assert isinstance(task, Task)
    assert isinstance(task, DemonstrationSource)
    assert task.num_questions("train") is None
    assert task.num_questions("val") == 256


@pytest.mark.parametrize("num_operands, num_digits", [(1, 1), (3, 4), (5, 3)], ids=str)
def test_answer_is_the_chain_from_left_to_right(num_operands, num_digits):
    task = ArithmeticTask(num_operands=num_operands, num_digits=num_digits)
    for index in range(30):
        question = task.question("train", index)
        value, steps = parse(question)
        assert len(steps) == num_operands
        assert all(len(str(number)) == num_digits for number in [value, *(operand for _, operand in steps)])
        for sign, operand in steps:
            value = compute(value, sign, operand)
        assert question.answers == (str(value),)


def test_questions_are_the_ones_that_were_first_released():
    # frozen: a change here changes every published run
    question = ArithmeticTask().question("val", 1)
    assert question.messages[0].content == "Start 7988. Then *4008, -4027, *1956."
    # 7988 * 4008 = 32015904; - 4027 = 32011877; * 1956 = 62615231412
    assert question.answers == ("62615231412",)


def test_same_index_gives_the_same_and_other_seeds_give_others():
    task = ArithmeticTask()
    assert replace(task).question("train", 9) == task.question("train", 9)
    assert replace(task).demonstration(9) == task.demonstration(9)
    assert replace(task, seed=1).question("train", 9).messages != task.question("train", 9).messages
    assert replace(task, seed=1).question("val", 9) == task.question("val", 9)
    assert replace(task, val_seed=1).question("val", 9).messages != task.question("val", 9).messages


def test_train_val_and_demonstrations_share_no_question():
    task = ArithmeticTask()
    asked = [task.question(split, index).messages[0].content for split in ("train", "val") for index in range(256)]
    asked += [task.demonstration(index).question.messages[0].content for index in range(256)]
    assert len(set(asked)) == 3 * 256


def test_demonstrated_calls_are_python_that_prints_the_demonstrated_result():
    for index in range(50):
        turns = ArithmeticTask().demonstration(index).turns
        assert [turn.source for turn in turns[0::2]] == [SegmentSource.POLICY] * 4
        assert [turn.source for turn in turns[1::2]] == [SegmentSource.TOOL] * 3
        for call, result in zip(turns[:-1:2], turns[1::2], strict=True):
            code = re.search(r"<python> (-?\d+[-+*]\d+) </python>$", call.text).group(1)
            assert str(eval(code)) == result.text
        assert turns[-1].text == f"<answer> \\boxed{{{turns[-2].text}}} </answer>"


def test_demonstrations_without_errors_end_at_the_answer():
    task = ArithmeticTask(demonstration_error_rate=0.0)
    for index in range(100):
        demonstration = task.demonstration(index)
        assert demonstration.turns[-2].text == demonstration.question.answers[0]


def test_one_wrong_step_never_ends_at_the_answer():
    task = ArithmeticTask(demonstration_error_rate=1.0, num_operands=1)
    for index in range(100):
        demonstration = task.demonstration(index)
        assert demonstration.turns[-2].text != demonstration.question.answers[0]


def test_share_of_right_demonstrations_falls_with_every_step():
    demonstrations = [ArithmeticTask().demonstration(index) for index in range(1000)]
    right = sum(d.turns[-2].text == d.question.answers[0] for d in demonstrations) / 1000
    # three steps at an error rate of 0.3: 0.7^3 = 0.343; standard deviation 0.015, four of them
    assert right == pytest.approx(0.343, abs=0.06)


def test_system_prompt_comes_first_when_given():
    messages = ArithmeticTask(system_prompt="Use Python.").question("val", 0).messages
    assert [(message.role, message.content) for message in messages[:1]] == [("system", "Use Python.")]
    assert messages[1:] == ArithmeticTask().question("val", 0).messages


def test_texts_cost_one_token_a_character_or_tag():
    tokenizer = build_byte_tokenizer()
    for turn in ArithmeticTask().demonstration(0).turns:
        without_tags = re.sub(r"</?[a-z]+>", "#", turn.text)
        assert len(tokenizer.encode(turn.text)) == len(without_tags)


@pytest.mark.parametrize("split, index", [("val", 256), ("val", -1), ("train", -1)], ids=str)
def test_positions_outside_a_split_are_refused(split, index):
    with pytest.raises(IndexError, match="`index` must be a position"):
        ArithmeticTask().question(split, index)


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"num_operands": 0}, "num_operands"),
        ({"num_digits": 0}, "num_digits"),
        ({"num_val_questions": -1}, "num_val_questions"),
        ({"signs": ""}, "signs"),
        ({"signs": "+/"}, "signs"),
        ({"signs": "++"}, "signs"),
        ({"demonstration_error_rate": -0.1}, "demonstration_error_rate"),
    ],
    ids=lambda value: str(value),
)
def test_settings_without_meaning_are_refused_by_name(settings, named):
    with pytest.raises(ConfigError, match=f"`{named}` must be"):
        ArithmeticTask(**settings)
