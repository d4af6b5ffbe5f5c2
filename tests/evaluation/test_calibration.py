"""Agreement, kappa and the corrected accuracy: numbers worked by hand, slow references, laws."""

import math
import random
from collections import Counter
from statistics import NormalDist, fmean

import pytest

from aepo_lightning.evaluation.calibration import (
    Calibration,
    JudgedLabel,
    agreement,
    cohen_kappa,
    confusion,
    prediction_powered,
    unseen_share,
)

Z = NormalDist().inv_cdf(0.975)


def pairs(*counts, num_questions=None):
    """Return (label, verdict) pairs, so many of each of: both yes, judge alone, label alone, both no."""
    kinds = [(True, True), (False, True), (True, False), (False, False)]
    all_of = [kind for kind, num in zip(kinds, counts, strict=True) for _ in range(num)]
    return [
        JudgedLabel(question_id=f"q{index % (num_questions or len(all_of))}", is_correct=label, judged=judged)
        for index, (label, judged) in enumerate(all_of)
    ]


def slow_kappa(found):
    both = [(pair.is_correct, pair.judged) for pair in found if pair.judged is not None]
    observed = fmean(label is judged for label, judged in both)
    labels, verdicts = (Counter(each) for each in zip(*both, strict=True))
    by_chance = sum(labels[word] * verdicts[word] for word in (True, False)) / len(both) ** 2
    return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


def slow_interval(found, statistic, seed, resamples):
    """Draw questions with replacement, one by one, and pool their pairs."""
    by_question = {}
    for pair in found:
        if pair.judged is not None:
            by_question.setdefault(pair.question_id, []).append(pair)
    names, values, source = list(by_question), [], random.Random(seed)
    for _ in range(resamples):
        drawn = [pair for name in source.choices(names, k=len(names)) for pair in by_question[name]]
        if (value := statistic(drawn)) is not None:
            values.append(value)
    values.sort()
    return values[int(0.025 * len(values))], values[int(0.975 * len(values))]


def test_kappa_by_hand():
    # Labels: 25 of 50 yes; verdicts: 30 of 50 yes. p_o = 35/50 = 0.7, p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5, kappa = 0.4.
    found = pairs(20, 10, 5, 15)
    assert cohen_kappa(found).value == pytest.approx(0.4)
    assert agreement(found).value == pytest.approx(0.7)


def test_the_table_counts_verdicts_labels_and_abstentions():
    found = [*pairs(4, 3, 2, 1), JudgedLabel(question_id="x", is_correct=True, judged=None)]
    table = confusion(found)
    assert (table.true_positives, table.false_positives, table.false_negatives, table.true_negatives) == (4, 3, 2, 1)
    assert (table.abstained_correct, table.abstained_incorrect, table.num_judged, table.num_abstained) == (1, 0, 10, 1)


@pytest.mark.parametrize("seed", range(3))
def test_kappa_and_its_interval_are_those_of_a_slow_reference(seed):
    source = random.Random(seed)
    found = []
    for question in range(30):
        is_hard = source.random() < 0.3  # the errors of the judge lie together
        for _ in range(source.randint(1, 4)):
            label = source.random() < 0.5
            judged = None if source.random() < 0.1 else label ^ (is_hard and source.random() < 0.7)
            found.append(JudgedLabel(question_id=f"q{question}", is_correct=label, judged=judged))
    kappa = cohen_kappa(found)
    assert kappa.value == pytest.approx(slow_kappa(found))
    low, high = slow_interval(found, slow_kappa, seed, resamples=1000)
    # Two bootstraps of 1,000 and 5,000 resamples: their ends differ by about 0.02.
    assert (kappa.low, kappa.high) == pytest.approx((low, high), abs=0.06)


def test_pairs_of_one_question_count_as_one_another():
    alone = agreement(pairs(60, 20, 20, 60))
    clustered = agreement(
        [
            JudgedLabel(question_id=f"q{index // 8}", is_correct=p.is_correct, judged=p.judged)
            for index, p in enumerate(pairs(60, 20, 20, 60))
        ]
    )
    assert clustered.value == alone.value
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("counts", "kappa", "ends"),
    # 20 questions: 1 - 0.025^(1/20) = 0.1684 of others may be unseen.
    [((9, 0, 0, 11), 1.0, (0.8316, 1.0)), ((0, 10, 10, 0), -1.0, (0.0, 0.1684))],
    ids=["always", "never"],
)
def test_a_judge_that_never_differs_still_has_an_interval(counts, kappa, ends):
    found = cohen_kappa(pairs(*counts))
    assert found.value == pytest.approx(kappa)
    assert 0.1 < found.high - found.low < 0.8
    share = agreement(pairs(*counts))
    assert (share.low, share.high) == pytest.approx(ends, abs=1e-4)


def test_one_question_says_almost_nothing():
    found = agreement(pairs(3, 1, 0, 0, num_questions=1))
    assert (found.value, found.low, found.high) == pytest.approx((0.75, 0.75 * 0.025, 0.75 + 0.25 * 0.975))


@pytest.mark.parametrize(
    ("found", "has_agreement"),
    [(pairs(5, 0, 0, 0), True), ([JudgedLabel(question_id="q", is_correct=True, judged=None)], False), ([], False)],
    ids=["one kind", "all abstained", "none"],
)
def test_kappa_is_not_defined_where_nothing_varies(found, has_agreement):
    assert cohen_kappa(found) is None
    assert (agreement(found) is not None) is has_agreement


def test_a_calibration_needs_pairs():
    with pytest.raises(ValueError, match="`pairs` must not be empty"):
        Calibration(judge={}, pairs=())


def test_the_corrected_accuracy_by_hand():
    # Evaluation: 8 of 10 judged correct, mean 0.8, squared error (10/9) * 10 * 0.16 / 100 = 0.017778.
    # Labels: 20 pairs, verdict minus label is +1 four times: mean 0.2, squared error (20/19) * 20 * 0.16 / 400
    # = 0.0084211.
    verdicts = [(f"e{index}", index < 8) for index in range(10)]
    found = prediction_powered(verdicts, pairs(8, 4, 0, 8))
    assert found.value == pytest.approx(0.6)
    assert found.high - found.value == pytest.approx(Z * math.sqrt(0.0177778 + 0.0084211), rel=1e-4)
    assert found.low == pytest.approx(2 * found.value - found.high)


@pytest.mark.parametrize("seed", range(3))
def test_the_corrected_accuracy_is_that_of_a_slow_reference(seed):
    source = random.Random(seed)
    verdicts = [(f"e{source.randint(0, 40)}", source.random() < 0.6) for _ in range(200)]
    labelled = [
        JudgedLabel(
            question_id=f"q{source.randint(0, 25)}", is_correct=source.random() < 0.5, judged=source.random() < 0.6
        )
        for _ in range(60)
    ]

    def mean_and_variance(values):
        names, mean = sorted({name for name, _ in values}), fmean(value for _, value in values)
        sums = [sum(value - mean for each, value in values if each == name) for name in names]
        return mean, len(names) / (len(names) - 1) * sum(total**2 for total in sums) / len(values) ** 2

    judged, judged_variance = mean_and_variance([(name, float(verdict)) for name, verdict in verdicts])
    excess, excess_variance = mean_and_variance([(p.question_id, p.judged - p.is_correct) for p in labelled])
    found = prediction_powered(verdicts, labelled)
    assert found.value == pytest.approx(judged - excess)
    assert found.high - found.low == pytest.approx(2 * Z * math.sqrt(judged_variance + excess_variance))


def test_the_corrected_interval_holds_the_truth_as_often_as_it_says():
    source, num_held = random.Random(0), 0
    for _ in range(120):
        # A lenient judge: it calls 30 % of wrong answers correct. 50 % are; verdicts alone would say 65 %.
        def answer(name):
            label = source.random() < 0.5
            return JudgedLabel(question_id=name, is_correct=label, judged=label or source.random() < 0.3)

        labelled = [answer(f"l{index}") for index in range(80)]
        found = prediction_powered([(f"e{index}", answer("").judged) for index in range(200)], labelled)
        num_held += found.low <= 0.5 <= found.high
    # 95 % of 120 is 114, with a standard deviation of 2.4.
    assert num_held >= 106


def test_a_judge_that_never_erred_on_the_labels_still_may():
    verdicts = [(f"e{index}", index % 2 == 0) for index in range(1000)]
    few, many = (prediction_powered(verdicts, pairs(num, 0, 0, num)) for num in (5, 500))
    assert few.value == many.value == pytest.approx(0.5)
    reach = Z * math.sqrt(0.25 / 999)
    assert few.high - few.value == pytest.approx(reach + unseen_share(10))
    assert many.high - many.value < 0.04


def test_an_estimate_stays_a_share():
    found = prediction_powered([("a", True), ("b", True)], pairs(2, 0, 8, 2))
    assert (found.value, found.high) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("verdicts", "labelled"), [([("a", True)], pairs(2, 1, 1, 2)), ([("a", True), ("b", False)], pairs(1, 0, 0, 0))]
)
def test_one_question_corrects_nothing(verdicts, labelled):
    assert prediction_powered(verdicts, labelled) is None
