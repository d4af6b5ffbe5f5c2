from dataclasses import dataclass, field, replace

import pytest
from lightning import LightningDataModule
from typing_extensions import override

from aepo_lightning.branching import EntropyBalanced, NeverBranch, OfficialEntropyBalanced
from aepo_lightning.callbacks import BranchPenalty
from aepo_lightning.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AlwaysBranch:
    """Branches after every tool result and remembers under which penalty it was asked."""

    penalty_per_step: float = 0.1
    penalties_asked: list[float] = field(default_factory=list)

    def num_branches(self, _context):
        self.penalties_asked.append(self.penalty_per_step)
        return 1

    def with_penalty(self, penalty_per_step):
        return replace(self, penalty_per_step=penalty_per_step)


def logged_penalties(run):
    return run.logger.values("rollout/branch_penalty")


def all_token_ids(run):
    return [path.token_ids for tree in run.datamodule.trees for path in tree.trajectories()]


def test_rises_above_the_target_falls_below_it_and_rests_on_it(make_run, set_metrics):
    script = set_metrics(branch_concentration=[0.9, 0.5, 0.2, 0.2])
    penalty = BranchPenalty(target_concentration=0.5, step=0.01)
    run = make_run([script, penalty], max_epochs=4).fit()
    # Rolled out under 0.1; 0.9 > 0.5: +0.01; 0.5 is the target; 0.2 < 0.5: -0.01 from then on.
    # The tolerance is that of the float32 in which Lightning keeps logged values.
    assert logged_penalties(run) == pytest.approx([0.10, 0.11, 0.11, 0.10], rel=1e-6)
    assert penalty.penalty == pytest.approx(0.09, rel=1e-12)


@pytest.mark.parametrize(
    ("concentration", "limit"), [pytest.param(1.0, 0.15, id="maximum"), pytest.param(0.1, 0.05, id="minimum")]
)
def test_stays_within_its_limits(make_run, set_metrics, concentration, limit):
    penalty = BranchPenalty(target_concentration=0.5, step=0.03, minimum=0.05, maximum=0.15)
    make_run([set_metrics(branch_concentration=[concentration]), penalty], max_epochs=3).fit()
    assert penalty.penalty == limit


def test_is_constant_without_a_target(make_run, set_metrics):
    penalty = BranchPenalty()
    run = make_run([set_metrics(branch_concentration=[1.0]), penalty], max_epochs=2).fit()
    assert logged_penalties(run) == pytest.approx([0.1, 0.1], rel=1e-6)
    assert run.datamodule.sampler.parts.branch_policy == EntropyBalanced(alpha=1.0, penalty_per_step=0.1)


def test_an_iteration_without_branches_moves_nothing(make_run, set_metrics):
    class Remove(set_metrics):
        @override
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.datamodule.metrics.pop("rollout/branch_concentration", None)

    penalty = BranchPenalty(target_concentration=0.5)
    run = make_run([Remove(), penalty], max_epochs=2).fit()
    assert logged_penalties(run) == pytest.approx([0.1, 0.1], rel=1e-6)


def test_logs_nothing_for_a_policy_without_a_penalty(make_run):
    run = make_run([BranchPenalty()], branch_policy=NeverBranch()).fit()
    assert "rollout/branch_penalty" not in run.logger.names


def test_rollouts_are_made_under_the_penalty_that_is_logged(make_run):
    policy = AlwaysBranch()
    run = make_run([BranchPenalty(target_concentration=0.5, step=0.25)], max_epochs=2, branch_policy=policy).fit()
    assert logged_penalties(run) == pytest.approx([0.1, 0.35], rel=1e-6)
    assert set(policy.penalties_asked) == {0.1, 0.35}
    assert sorted(policy.penalties_asked) == policy.penalties_asked


def test_a_resumed_run_rolls_out_under_the_saved_penalty(make_run, tmp_path):
    def make(policy, max_epochs, **options):
        callback = BranchPenalty(target_concentration=0.5, step=0.25, maximum=1.0)
        return make_run([callback], max_epochs=max_epochs, branch_policy=policy, **options)

    straight = make(AlwaysBranch(), 2, has_checkpoints=False).fit()
    make(AlwaysBranch(), 1).fit()
    policy = AlwaysBranch()
    resumed = make(policy, 2).fit(tmp_path / "checkpoints" / "last.ckpt")
    assert set(policy.penalties_asked) == {0.35}  # 0.1 + 0.25
    assert all_token_ids(resumed) == all_token_ids(straight)


@pytest.mark.parametrize("restored_first", [True, False], ids=["state before setup", "state after setup"])
def test_state_is_applied_whenever_it_comes(make_run, restored_first):
    run = make_run(branch_policy=OfficialEntropyBalanced())
    run.trainer.datamodule = run.datamodule
    penalty = BranchPenalty(target_concentration=0.5)
    steps = [
        lambda: penalty.load_state_dict({"penalty": 0.3}),
        lambda: penalty.setup(run.trainer, run.module, "fit"),
    ]
    for step in steps if restored_first else reversed(steps):
        step()
    assert run.datamodule.branch_policy == OfficialEntropyBalanced(penalty_per_step=0.3)
    assert penalty.state_dict() == {"penalty": 0.3}


@pytest.mark.parametrize(
    ("target", "saved"), [pytest.param(None, 0.3, id="constant now"), pytest.param(0.5, None, id="constant before")]
)
def test_a_constant_penalty_is_the_configured_one_after_a_resume(make_run, target, saved):
    run = make_run()
    run.trainer.datamodule = run.datamodule
    penalty = BranchPenalty(target_concentration=target)
    penalty.setup(run.trainer, run.module, "fit")
    penalty.load_state_dict({"penalty": saved})
    assert run.datamodule.branch_policy.penalty_per_step == 0.1


def test_refuses_a_target_for_a_policy_without_a_penalty(make_run):
    run = make_run([BranchPenalty(target_concentration=0.5)], branch_policy=NeverBranch())
    with pytest.raises(
        ConfigError, match=r"`branch_policy` must have a penalty.* got NeverBranch. Use EntropyBalanced"
    ):
        run.fit()


def test_refuses_another_kind_of_data(make_run):
    run = make_run()
    with pytest.raises(
        ConfigError, match=r"must have `metrics`, `branch_policy` for this callback.*but the trainer has neither"
    ):
        BranchPenalty().setup(run.trainer, run.module, "fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"target_concentration": 0.0}, "`target_concentration` must be", id="target zero"),
        pytest.param({"target_concentration": 1.1}, "`target_concentration` must be", id="target above one"),
        pytest.param({"step": 0.0}, "`step` must be positive", id="no step"),
        pytest.param({"step": float("nan")}, "`step` must be positive", id="nan step"),
        pytest.param({"minimum": -0.1}, "`minimum` and `maximum` must", id="negative minimum"),
        pytest.param({"minimum": 0.6}, "`minimum` and `maximum` must", id="minimum above maximum"),
        pytest.param({"maximum": float("inf")}, "`minimum` and `maximum` must", id="no maximum"),
    ],
)
def test_refuses_settings_without_meaning(settings, message):
    with pytest.raises(ConfigError, match=message):
        BranchPenalty(**settings)


def test_says_what_data_and_module_lack(make_run):
    run = make_run()
    run.trainer.datamodule = LightningDataModule()
    with pytest.raises(ConfigError, match="but LightningDataModule has no `metrics`, `branch_policy`"):
        BranchPenalty().setup(run.trainer, run.module, "fit")
