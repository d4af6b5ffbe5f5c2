"""Fresh rollouts between epochs: published once, collected once, resumed exactly."""

import logging
import warnings
from dataclasses import replace

import pytest
import torch
from lightning import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from aepo_lightning.contracts.question import Question, Task
from aepo_lightning.errors import ConfigError
from aepo_lightning.objectives import ImportanceCorrection
from aepo_lightning.rollout import SamplingSettings
from tests.support.builders import canonical
from tests.support.recorded_runs import TreeRecorder, adam, experience, tree_run
from tests.support.slow import quick
from tests.support.training import (
    TASK,
    RecordingEngine,
    flat,
    make_datamodule,
    make_module,
    make_run,
    make_trainer,
    small_policy,
)


def test_weights_are_published_once_per_iteration_with_the_step_as_version(tmp_path):
    run, recorder = tree_run(tmp_path, max_epochs=3, limit_val_batches=1.0, check_val_every_n_epoch=1)
    run.fit()
    # Two steps an epoch: rollouts at 0, 2 and 4; validation follows each epoch with the weights of 2, 4 and 6, and the
    # next rollouts take those.
    assert run.datamodule.engine.versions == [0, 2, 4, 6]
    assert recorder.versions == [0, 2, 4]


def test_the_engine_samples_from_the_updated_policy(tmp_path):
    run, _ = tree_run(tmp_path, max_epochs=1)
    run.fit()
    questions = [TASK.question("val", 0)]
    engine = run.datamodule.engine
    (old,) = run.datamodule.evaluate(questions)
    run.datamodule.publish_weights()
    (same_step,) = run.datamodule.evaluate(questions)
    assert engine.versions == [0, 2]
    assert canonical(old) != canonical(same_step)
    (batch,) = experience(max_tokens_per_micro_batch=10_000).build([same_step], run.module.score)[0].micro_batches
    # The engine's float32 sums are in another order than the trainer's.
    torch.testing.assert_close(batch.sampler_logprobs, batch.old_logprobs, atol=1e-5, rtol=1e-5)


def test_the_engine_and_the_trainer_agree_all_along(tmp_path):
    run, _ = tree_run(tmp_path, max_epochs=3)
    gaps = run.fit().logger.values("train/sampler_logprob_gap")
    assert len(gaps) == 6
    assert max(gaps) < 1e-5


@pytest.mark.filterwarnings("ignore:Found 2 module.s. in eval mode at the start of training")
def test_dropout_is_off_in_old_log_probs_and_in_the_update(tmp_path):
    module = make_module(small_policy(attention_dropout=0.5))
    run = make_run(tmp_path, module, make_datamodule(module.policy)).fit()
    assert max(run.logger.values("train/sampler_logprob_gap")) < 1e-5
    assert run.logger.values("train/importance_ratio")[0] == pytest.approx(1, abs=1e-4)


class LoaderRecorder(Callback):
    @override
    def on_train_epoch_start(self, trainer, pl_module):
        datamodule = trainer.datamodule
        first, second = list(datamodule.train_dataloader()), list(datamodule.train_dataloader())
        assert all(a is b for a, b in zip(first, second, strict=True))
        assert datamodule.iteration == trainer.current_epoch + 1


def test_a_second_call_at_the_same_step_returns_the_same_data(tmp_path):
    tree_run(tmp_path, callbacks=[LoaderRecorder()])[0].fit()


def test_every_iteration_asks_the_next_questions_under_ids_of_their_own(tmp_path):
    run, recorder = tree_run(tmp_path, max_epochs=3)
    run.fit()
    assert recorder.questions == [
        ["0:trail-train-0", "1:trail-train-1"],
        ["2:trail-train-2", "3:trail-train-3"],
        ["4:trail-train-4", "5:trail-train-5"],
    ]


class OneQuestion:
    """A stream that asks the same question for ever."""

    def question(self, split, _index):
        return Question(question_id="same", messages=TASK.question(split, 0).messages, answers=("e0",))

    def num_questions(self, _split):
        return None


def test_a_question_that_comes_again_is_another_tree(tmp_path):
    assert isinstance(OneQuestion(), Task)
    run, recorder = tree_run(tmp_path)
    run.datamodule.task = OneQuestion()
    run.fit()
    assert recorder.questions == [["0:same", "1:same"], ["2:same", "3:same"]]
    assert len({str(tree) for trees in recorder.trees for tree in trees}) == 4


def test_rollouts_are_a_function_of_the_seed(tmp_path):
    records = {}
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        recorder = TreeRecorder()
        module = make_module(optimizer=adam())
        datamodule = make_datamodule(module.policy, seed=seed)
        torch.manual_seed(len(records))  # the global generator must not matter
        make_run(tmp_path, module, datamodule, callbacks=[recorder], max_epochs=2).fit()
        records[name] = recorder.trees
    assert records["one"] == records["same"]
    assert records["one"][0] != records["other"][0]


# Validation ---------------------------------------------------------------------------------------------------------


class GenerationRecorder(Callback):
    """How many tokens the engine has generated by the time of each validation batch."""

    def __init__(self):
        self.counts = []

    @override
    def on_validation_start(self, trainer, pl_module):
        self.on_validation_batch_start(trainer)

    @override
    def on_validation_batch_start(self, trainer, *_):
        self.counts.append(trainer.datamodule.engine.counters.num_generated_tokens)


def validated_trees(run):
    return [tree for batch in run.module._val_batches for tree in batch.trees]


def test_validation_is_rolled_out_as_it_is_read(tmp_path):
    recorder = GenerationRecorder()
    module = make_module()
    datamodule = make_datamodule(module.policy, publication_check=None)  # its probe would be counted
    run = make_run(tmp_path, module, datamodule, callbacks=[recorder], limit_val_batches=1.0)
    run.validate()
    before, first, second = recorder.counts
    trees = validated_trees(run)
    assert before == 0
    assert first == sum(tree.num_generated_tokens for tree in trees[:2])
    assert second == first + trees[2].num_generated_tokens


def test_validation_asks_the_same_whatever_the_chunks_and_logs_pass_rates(tmp_path):
    logs = []
    for chunk_size in (1, 2, 3):
        module = make_module()
        datamodule = make_datamodule(module.policy, val_chunk_size=chunk_size)
        run = make_run(tmp_path, module, datamodule, limit_val_batches=1.0).validate()
        logs.append({name: value for _, name, value in run.logger.numbers()})
        trees = validated_trees(run)
        assert [tree.question.question_id for tree in trees] == ["trail-val-0", "trail-val-1", "trail-val-2"]
    assert all(other == pytest.approx(logs[0]) for other in logs)
    correct = [[leaf.reward.is_correct for leaf in tree.leaves] for tree in trees]
    # Four independent samples each: pass@1 is the share of right ones, pass@4 whether there is any.
    assert logs[0]["val/pass@1"] == pytest.approx(sum(map(sum, correct)) / 12)
    assert logs[0]["val/pass@4"] == pytest.approx(sum(map(any, correct)) / 3)
    assert not any(tree.branch_depths for tree in trees)


def test_validation_does_not_change_training(tmp_path):
    weights = []
    for validated in (0, 1.0):
        run, _ = tree_run(tmp_path, limit_val_batches=validated, check_val_every_n_epoch=1)
        weights.append(flat(run.fit().network.parameters()))
    assert torch.equal(*weights)


def test_a_task_without_end_needs_a_number_of_validation_questions(tmp_path):
    run, _ = tree_run(tmp_path)
    run.datamodule.task, run.datamodule.trainer = OneQuestion(), run.trainer
    run.datamodule._questions = replace(run.datamodule._questions, num_val_questions=None)
    with pytest.raises(ValueError, match="`num_val_questions` must be given for a task without end"):
        run.datamodule.val_questions()


def test_no_more_validation_questions_than_there_are(tmp_path):
    run, _ = tree_run(tmp_path)
    run.datamodule.trainer = run.trainer
    run.datamodule._questions = replace(run.datamodule._questions, num_val_questions=10_000)
    assert len(run.datamodule.val_questions()) == TASK.num_questions("val")


# State --------------------------------------------------------------------------------------------------------------


def test_state_goes_round_as_plain_values(tmp_path):
    datamodule = make_datamodule(make_module().policy)
    datamodule.iteration, datamodule.num_asked = 7, 15
    torch.save(datamodule.state_dict(), tmp_path / "state.pt")
    other = make_datamodule(make_module().policy)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (other.iteration, other.num_asked) == (7, 15)
    assert other.state_dict() == datamodule.state_dict()


def saver(folder):
    return ModelCheckpoint(
        folder, filename="{epoch}", save_last=True, save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True
    )


@pytest.mark.parametrize("is_same_object", quick({"new process": False, "same datamodule": True}, "new process"))
def test_a_resumed_run_equals_one_that_was_never_stopped(tmp_path, is_same_object):
    whole, recorder = tree_run(tmp_path / "whole", max_epochs=4)
    whole.fit()
    first, before = tree_run(tmp_path / "half", max_epochs=2, callbacks=[saver(tmp_path / "half")])
    first.fit()
    second, after = tree_run(tmp_path / "half", max_epochs=4, callbacks=[saver(tmp_path / "half")])
    if is_same_object:
        second.datamodule = first.datamodule
    second.fit(ckpt_path=tmp_path / "half" / "last.ckpt")
    assert before.trees + after.trees == recorder.trees
    assert before.versions + after.versions == recorder.versions
    # A second process counts on from the step of the checkpoint, so that the two records join.
    assert first.logger.numbers() + second.logger.numbers() == whole.logger.numbers()
    assert second.trainer.global_step == whole.trainer.global_step == 8
    assert torch.equal(flat(second.network.parameters()), flat(whole.network.parameters()))


def test_going_back_to_an_older_checkpoint_goes_back_in_the_stream(tmp_path):
    run, recorder = tree_run(tmp_path, max_epochs=2, callbacks=[saver(tmp_path)])
    run.fit()
    again, repeated = tree_run(tmp_path, max_epochs=3, callbacks=[saver(tmp_path)])
    again.datamodule = run.datamodule  # it was last collected at the very step of the checkpoint
    again.fit(ckpt_path=tmp_path / "epoch=0.ckpt")
    assert repeated.trees[0] == recorder.trees[1]
    assert repeated.questions == [
        ["2:trail-train-2", "3:trail-train-3"],
        ["4:trail-train-4", "5:trail-train-5"],
    ]


def test_another_trainer_gets_the_weights_published_again(tmp_path):
    module = make_module()
    engine = RecordingEngine(module.policy, max_num_seqs=16, max_model_len=64)
    datamodule = make_datamodule(module.policy, engine)
    for _ in range(2):
        make_run(tmp_path, make_module(), datamodule, limit_val_batches=1.0).validate()
    assert engine.versions == [0, 0]


# Settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 3])
def test_an_iteration_is_a_whole_number_of_steps(number):
    with pytest.raises(ValueError, match=rf"`questions_per_iteration` must be a positive multiple .* but got {number}"):
        make_datamodule(make_module().policy, questions_per_iteration=number)


@pytest.mark.parametrize("is_restricted", [True, False], ids=["top-p", "whole distribution"])
def test_sampling_that_log_probs_do_not_describe_is_warned_about_once(tmp_path, caplog, is_restricted):
    module, sampling = make_module(), SamplingSettings(max_response_tokens=24, top_p=0.9 if is_restricted else 1.0)
    run = make_run(tmp_path, module, make_datamodule(module.policy, sampling=sampling), limit_val_batches=1.0)
    with caplog.at_level(logging.WARNING, logger="aepo_lightning.training.consistency"):
        run.validate().fit()
    assert caplog.text.count("With top_p=0.9 tokens are drawn from the most likely ones only") == int(is_restricted)


def test_batches_and_loss_that_disagree_about_old_log_probs_are_refused(tmp_path):
    module = make_module()
    datamodule = make_datamodule(module.policy, experience=experience(old_logprobs="sampler"))
    with pytest.raises(ConfigError, match="must be that of the experience, 'sampler', but got 'recompute'"):
        make_run(tmp_path, module, datamodule).fit()


def test_rollouts_without_overlap_are_never_stale(tmp_path):
    run, _ = tree_run(tmp_path)
    assert run.fit().logger.values("rollout/staleness_steps") == [0, 0]


def test_one_on_policy_step_is_not_scored_before_and_trains_as_if_it_were(tmp_path):
    weights = []
    for source in ("recompute", "auto"):
        correction = ImportanceCorrection(old_logprobs=source)
        module = make_module(optimizer=adam(), importance_correction=correction)
        builder = experience(shaping=None, questions_per_step=2, old_logprobs=source)
        run = make_run(tmp_path, module, make_datamodule(module.policy, experience=builder), max_epochs=2).fit()
        weights.append(flat(run.network.parameters()))
        assert len(run.logger.values("experience/max_importance_weight")) == (2 if source == "recompute" else 0)
    # Two AdamW steps of 1e-2; the ratio of 1 is rounded where it is computed.
    torch.testing.assert_close(*weights, atol=1e-5, rtol=1e-5)


class OtherModule(LightningModule):
    def configure_optimizers(self):
        return None

    @override
    def training_step(self, batch, batch_idx):
        raise AssertionError("no batch can come")

    validation_step = training_step


def test_another_module_is_refused(tmp_path):
    datamodule = make_datamodule(make_module().policy)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`LightningModule.configure_optimizers` returned `None`")
        with pytest.raises(
            ConfigError, match="must be an `AEPOModule` or have what `TrainedPolicy` lists, but got OtherM"
        ):
            make_trainer(tmp_path, logger=False).fit(OtherModule(), datamodule=datamodule)


def test_nothing_asks_for_worker_processes(tmp_path, monkeypatch):
    # On a machine with many cores Lightning warns about loaders without workers; warnings are errors here.
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.data_connector.suggested_max_num_workers", lambda _: 16)
    run, _ = tree_run(tmp_path, max_epochs=1, limit_val_batches=1.0, check_val_every_n_epoch=1)
    run.fit()
