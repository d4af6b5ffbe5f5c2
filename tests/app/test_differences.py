"""What becomes of a configuration that is not the saved one."""

import pytest
from omegaconf import OmegaConf

from aepo_lightning.app.differences import Verdict, find_differences, listing, settle
from aepo_lightning.errors import ConfigError

SAVED = {
    "seed": 0,
    "run_dir": "a",
    "model": {"seed": "${seed}", "architecture": {"hidden_size": 64}},
    "coldstart": {"num_steps": 650, "optimizer": {"lr": 1.0}},
    "data": {"seed": "${seed}", "task": {"places": 3}},
    "module": {"optimizer": {"_target_": "AdamW", "lr": 1e-3}, "scheduler": None, "adapter": None},
    "words": "${data.task}",
}


def wanted(**changes):
    cfg = OmegaConf.create(SAVED)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, merge=False, force_add=True)
    return cfg


def differences(cfg, trained=True, own_folder=True):
    return find_differences(OmegaConf.create(SAVED), cfg, trained=trained, own_folder=own_folder)


def verdicts(cfg, **settings):
    return {each.key: str(each.verdict) for each in differences(cfg, **settings)}


def test_equal_values_are_no_difference():
    assert verdicts(wanted(run_dir="b", model__seed=0, module__optimizer__lr=0.001, module__new=None)) == {}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"module__optimizer__lr": 1e-4}, "applied"),
        ({"data__task__places": 4}, "applied"),
        ({"coldstart__num_steps": 3}, "ignored"),
        ({"coldstart__optimizer__lr": 3.0}, "ignored"),
        ({"model__seed": 3}, "ignored"),
        ({"model__architecture__hidden_size": 96}, "refused"),
        ({"model__architecture__sliding_window": 96}, "refused"),
        ({"module__optimizer___target_": "SGD"}, "refused"),
        ({"module__adapter": {"rank": 4}}, "refused"),
        ({"model__tokenizer": {"words": 9}}, "refused"),
        ({"data__seed": 5}, "refused"),
        ({"data__task__seed": 5}, "refused"),
        ({"seed": 1}, "refused"),
    ],
)
def test_each_key_has_its_verdict_once_there_is_a_checkpoint(changes, verdict):
    (key,) = changes
    cfg = wanted(**changes)
    assert {each.split(".")[0]: its for each, its in verdicts(cfg).items()} == {key.split("__")[0]: verdict}
    assert set(verdicts(cfg, trained=False).values()) == {"applied"}, "nothing is trained: all of it can be"


@pytest.mark.parametrize(
    ("targets", "verdict"), [((0.5, 0.5), "ignored"), ((None, 0.5), "applied"), ((0.5, None), "applied")]
)
def test_a_penalty_that_moves_on_its_own_is_not_set_again(targets, verdict):
    def composed(target, penalty):
        return wanted(
            algorithm={"branch_policy": {"penalty_per_step": penalty}},
            callbacks={"branch_penalty": {"target_concentration": target}},
        )

    saved, new = composed(targets[0], 0.1), composed(targets[1], 0.2)
    found = find_differences(saved, new, trained=True, own_folder=True)
    assert {each.key: str(each.verdict) for each in found}["algorithm.branch_policy.penalty_per_step"] == verdict
    settled = settle(found, saved, new, "x")
    assert settled.algorithm.branch_policy.penalty_per_step == (0.1 if verdict == "ignored" else 0.2)


def test_a_scheduler_may_begin_but_not_change_its_class():
    begun = wanted(module__scheduler={"_target_": "Cosine"})
    assert verdicts(begun) == {"module.scheduler._target_": "applied"}
    other = wanted(module__scheduler={"_target_": "Step"})
    (found,) = find_differences(begun, other, trained=True, own_folder=True)
    assert found.verdict is Verdict.REFUSED


def test_a_new_run_from_a_checkpoint_may_have_a_seed_of_its_own():
    assert verdicts(wanted(seed=1, coldstart__num_steps=3), own_folder=False) == {
        "seed": "applied",
        "coldstart.num_steps": "applied",
    }
    assert verdicts(wanted(model__architecture__hidden_size=96), own_folder=False) == {
        "model.architecture.hidden_size": "refused"
    }


def test_what_is_ignored_keeps_its_saved_value_in_what_runs():
    cfg = wanted(coldstart={"num_steps": 0}, model__seed=7, module__optimizer__lr=1e-4)
    settled = settle(differences(cfg), OmegaConf.create(SAVED), cfg, "x")
    assert settled == wanted(module__optimizer__lr=1e-4)
    assert cfg.coldstart == {"num_steps": 0}, "what was composed is untouched"


def test_all_that_is_refused_is_listed_with_reason():
    cfg = wanted(seed=1, model__architecture__hidden_size=96)
    with pytest.raises(ConfigError, match=r"(?s)differs from x:.*  seed: 0 -> 1 \(every .*hidden_size: 64 -> 96 \(the"):
        settle(differences(cfg), OmegaConf.create(SAVED), cfg, "x")


def test_the_listing_says_what_was_and_is():
    (found,) = differences(wanted(module__optimizer__lr=1e-4))
    assert listing([found]) == "  applied   module.optimizer.lr: 0.001 -> 0.0001"
    assert listing([found] * 60).endswith("and 20 more")


def test_true_is_not_one():
    one, other = OmegaConf.create({"a": True, "b": 1}), OmegaConf.create({"a": 1, "b": 1.0})
    assert [each.key for each in find_differences(one, other, trained=True, own_folder=True)] == ["a"]
