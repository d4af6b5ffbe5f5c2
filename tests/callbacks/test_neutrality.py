import torch

from aepo_lightning.callbacks import (
    BranchPenalty,
    BranchPlaces,
    Dashboard,
    EntropyGuard,
    EntropyMonitor,
    EntropyTarget,
    LearningCurve,
    RolloutLogger,
    RolloutPictures,
    RunLog,
    Throughput,
    UpdateChecks,
)


def test_training_is_the_same_with_and_without_callbacks(make_run):
    callbacks = [BranchPenalty(), EntropyMonitor(), EntropyGuard(), RolloutLogger(), RunLog(), Throughput()]
    callbacks += [
        LearningCurve(),
        BranchPlaces(choice="", noise="e1"),
        EntropyTarget(),
        UpdateChecks(),
        Dashboard({"seed": 0}),
        RolloutPictures(),
    ]
    plain = make_run(max_epochs=2).fit()
    watched = make_run(callbacks, max_epochs=2, enable_progress_bar=True).fit()
    initial = plain.module.policy.build_model().state_dict()
    weights, other = plain.module.network.model.state_dict(), watched.module.network.model.state_dict()
    assert all(torch.equal(weights[name], other[name]) for name in weights)
    assert not any(torch.equal(weights[name], initial[name]) for name in weights)
