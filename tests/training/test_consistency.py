"""What may run beside what, and how far apart rollouts and update are."""

import pytest

from aepo_lightning.errors import ConfigError
from aepo_lightning.objectives import ImportanceCorrection
from aepo_lightning.rollout import RolloutSettings
from aepo_lightning.training.consistency import check_correction, check_overlap, needs_whole_rollouts, sampling_problem
from aepo_lightning.training.overlap import staleness
from tests.support.training import make_tree, policy_turn

TRUNCATED = ImportanceCorrection(mode="truncated")


class SeparateEngine:
    max_model_len = 8

    async def generate(self, _prompt_ids, _params, _on_probe=None):
        raise AssertionError("nothing is generated here")

    def load_weights(self, _weights, _version):
        raise AssertionError("nothing is published here")

    def sleep(self):
        """Nothing to free."""

    def close(self):
        """Nothing to free."""


class SharedEngine(SeparateEngine):
    def settle(self):
        """Serve the other ranks."""


@pytest.mark.parametrize(
    ("options", "named"),
    [({"top_p": 0.9}, "top_p=0.9"), ({"top_k": 20}, "top_k=20"), ({"top_p": 0.9, "top_k": 5}, "top_p=0.9 and top_k=5")],
)
def test_restricted_sampling_is_named(options, named):
    assert f"With {named} tokens are drawn" in sampling_problem(RolloutSettings(**options))


def test_whole_distributions_are_comparable():
    assert sampling_problem(RolloutSettings(temperature=0.7)) is None
    assert "With repetition_penalty=1.1 tokens" in sampling_problem(RolloutSettings(repetition_penalty=1.1))


def test_batches_and_loss_must_speak_of_the_same_old_log_probs():
    check_correction("recompute", TRUNCATED)
    with pytest.raises(ConfigError, match="must be that of the experience, 'sampler', but got 'recompute'"):
        check_correction("sampler", TRUNCATED)


def test_overlap_needs_an_engine_of_its_own():
    check_overlap(SeparateEngine(), TRUNCATED)
    with pytest.raises(ConfigError, match=r"`data.overlap` must be false for SharedEngine.* engine=vllm_server"):
        check_overlap(SharedEngine(), TRUNCATED)


@pytest.mark.parametrize("source", ["recompute", "auto"])
def test_overlap_needs_a_correction(source):
    check_overlap(SeparateEngine(), ImportanceCorrection(mode="masked", old_logprobs=source))
    with pytest.raises(ConfigError, match=r"must be 'truncated' or 'masked' with data\.overlap=true, but got 'none'"):
        check_overlap(SeparateEngine(), ImportanceCorrection(old_logprobs=source))


def test_a_ratio_to_the_sampler_corrects_by_itself():
    check_overlap(SeparateEngine(), ImportanceCorrection(old_logprobs="sampler"))


def test_staleness_is_counted_in_optimiser_steps():
    trees = [make_tree([[policy_turn(5)]], [1.0]) for _ in range(3)]
    for tree, version in zip(trees, (4, 4, 1), strict=True):
        tree.weights_version = version
    assert staleness(trees, 4) == (1.0, 3.0)


class RepeatableEngine(SeparateEngine):
    def __init__(self, is_repeatable):
        self.is_repeatable = is_repeatable


@pytest.mark.parametrize(
    ("engine", "correction", "expected"),
    [
        (RepeatableEngine(True), TRUNCATED, True),
        (RepeatableEngine(True), ImportanceCorrection(old_logprobs="sampler"), True),
        (RepeatableEngine(True), ImportanceCorrection(), False),
        (RepeatableEngine(False), TRUNCATED, False),
        (SeparateEngine(), TRUNCATED, False),
    ],
    ids=["weights", "ratios", "nothing is read", "a GPU", "servers"],
)
def test_rollouts_are_made_again_as_a_whole_where_the_loss_reads_an_engine_that_repeats_itself(
    engine, correction, expected
):
    assert needs_whole_rollouts(engine, correction) is expected
