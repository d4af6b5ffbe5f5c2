"""Where a run is in its stream of questions: none left out, none repeated, and none that leaves no room stops it."""

import logging
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from aepo_lightning.contracts.question import Message
from aepo_lightning.errors import DataError
from tests.support.overlapped import overlapped_run
from tests.support.recorded_runs import TreeRecorder, adam, experience
from tests.support.slow import first_quick
from tests.support.training import TASK, make_datamodule, make_module, make_run
from tests.training.test_datamodule import saver


def run_of(folder, max_epochs, task=None, callbacks=(), log_every_n_steps=1, **options):
    recorder = TreeRecorder()
    module = make_module(optimizer=adam())
    datamodule = make_datamodule(module.policy, **{"experience": experience()} | options)
    datamodule.task = task or TASK
    callbacks = [recorder, *callbacks]
    run = make_run(
        folder, module, datamodule, max_epochs=max_epochs, callbacks=callbacks, log_every_n_steps=log_every_n_steps
    )
    return run, recorder


def position(datamodule):
    state = datamodule.state_dict()
    assert (state["iteration"], state["num_asked"]) == (datamodule.iteration, datamodule.num_asked)
    return datamodule.iteration, datamodule.num_asked


def asked(*recorders):
    return [int(name.split(":")[0]) for recorder in recorders for names in recorder.questions for name in names]


@pytest.mark.parametrize("numbers", first_quick([(2, 4), (4, 2)]))
def test_another_number_of_questions_per_iteration_goes_on_where_the_run_was(tmp_path, numbers):
    first, then = numbers
    before, seen = run_of(tmp_path, 1, callbacks=[saver(tmp_path)], questions_per_iteration=first)
    before.fit()
    after, more = run_of(tmp_path, 2, callbacks=[saver(tmp_path)], questions_per_iteration=then)
    after.fit(ckpt_path=tmp_path / "last.ckpt")
    assert asked(seen, more) == list(range(first + then))
    assert after.trainer.global_step == first + then
    assert position(after.datamodule) == (2, first + then)


def test_a_state_of_iterations_alone_is_of_as_many_questions_each():
    datamodule = make_datamodule(make_module().policy, questions_per_iteration=6)
    datamodule.load_state_dict({"iteration": 3})
    assert position(datamodule) == (3, 18)
    datamodule.load_state_dict({"iteration": 3, "num_asked": 7})
    assert position(datamodule) == (3, 7)


@pytest.mark.slow
def test_passes_over_one_iteration_ask_its_questions_once_and_go_on_after_it(tmp_path):
    passes = experience(num_epochs=2)
    before, seen = run_of(tmp_path, 1, callbacks=[saver(tmp_path)], experience=passes)
    before.fit()
    after, more = run_of(tmp_path, 2, callbacks=[saver(tmp_path)], experience=passes)
    after.fit(ckpt_path=tmp_path / "last.ckpt")
    assert asked(seen, more) == list(range(4))
    assert after.trainer.global_step == 8
    straight, _ = run_of(tmp_path, 2, experience=passes)
    straight.fit()
    assert all(map(torch.equal, straight.module.parameters(), after.module.parameters()))


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
def test_a_checkpoint_from_within_an_iteration_says_what_it_leaves_out(tmp_path, caplog):
    every_step = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    run, _ = run_of(tmp_path, 1, callbacks=[every_step])
    run.fit()
    for name, left in (("step=1.ckpt", 1), ("step=2.ckpt", 0)):
        state = torch.load(tmp_path / name, weights_only=True)["RolloutDataModule"]
        assert state["num_steps_left"] == left
        caplog.clear()
        make_datamodule(make_module().policy).load_state_dict(state)
        assert ("saved within an iteration" in caplog.text) == (left > 0)


class Renamed:
    """The same questions under other ids."""

    def question(self, split, index):
        return replace(TASK.question(split, index), question_id=f"other-{index}")

    def num_questions(self, split):
        return TASK.num_questions(split)


class Reworded(Renamed):
    """The same ids with other texts."""

    def question(self, split, index):
        question = TASK.question(split, index)
        return replace(question, messages=(Message(role="user", content="x"), *question.messages[:-1]))


class Others(Renamed):
    """Other questions under other ids."""

    def question(self, split, index):
        return replace(Renamed.question(self, split, index), messages=TASK.question(split, index + 1).messages)


@pytest.mark.parametrize(("task", "expected"), [(Renamed, 6), (Reworded, 6), (Others, 0)])
def test_a_position_in_other_data_is_none(task, expected, caplog):
    datamodule = make_datamodule(make_module().policy)
    datamodule.iteration, datamodule.num_asked = 3, 6
    state = datamodule.state_dict()
    datamodule.task = task()
    datamodule.load_state_dict(state)
    assert position(datamodule) == (3, expected)
    assert ("was 'trail-train-5', but here it is 'other-5'" in caplog.text) is (expected == 0)


class WithLongQuestions:
    """The trail task with prompts that fill the context at some places."""

    def __init__(self, *places, size=None):
        self.places, self.size = places, size

    def question(self, split, index):
        question = TASK.question(split, index)
        if split == "val" or index not in self.places:
            return question
        return replace(question, messages=(Message(role="user", content=question.messages[0].content * 40),))

    def num_questions(self, split):
        return self.size if split == "train" else TASK.num_questions(split)


@pytest.mark.parametrize(
    ("places", "steps", "skipped", "iterations"),
    [
        pytest.param([1], 3, [1, 0], 2, id="one step of two", marks=pytest.mark.slow),
        pytest.param([0], 3, [1, 0], 2, id="the first question, which is also the probe"),
        pytest.param([2, 3, 4, 5], 4, [0, 4], 4, id="two iterations on end"),
    ],
)
def test_steps_without_room_for_a_response_are_left_out_and_counted(tmp_path, places, steps, skipped, iterations):
    run, _ = run_of(tmp_path, 2, WithLongQuestions(*places), log_every_n_steps=2)
    run.fit()
    assert run.trainer.global_step == steps
    assert run.logger.values("experience/skipped_steps") == skipped
    assert position(run.datamodule) == (iterations, 2 * iterations)
    assert len(run.logger.values("train/loss")) >= 2


def test_a_long_question_beside_another_costs_no_step(tmp_path):
    module = make_module(optimizer=adam())
    datamodule = make_datamodule(module.policy)  # both questions in one step
    datamodule.task = WithLongQuestions(1)
    run = make_run(tmp_path, module, datamodule).fit()
    assert run.trainer.global_step == 1
    assert run.logger.values("experience/skipped_steps") == [0]


def test_a_run_whose_questions_all_leave_no_room_ends_after_one_pass(tmp_path, caplog):
    run, _ = run_of(tmp_path, 1, WithLongQuestions(*range(6), size=5))
    with (
        caplog.at_level(logging.ERROR, "aepo_lightning.rollout.group"),
        pytest.raises(DataError, match=r"must leave room .* within 64 tokens, but none of the 6 questions asked last"),
    ):
        run.fit()


@pytest.mark.slow
def test_overlap_goes_on_after_an_iteration_without_steps(tmp_path):
    recorder = TreeRecorder()
    run, _ = overlapped_run(tmp_path, callbacks=[recorder], max_epochs=3)
    run.datamodule.task = WithLongQuestions(2, 3)
    run.fit()
    assert asked(recorder) == [0, 1, 4, 5, 6, 7]
