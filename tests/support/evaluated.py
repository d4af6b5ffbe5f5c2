"""Results of evaluations, made of a few words."""

from aepo_lightning.contracts.checker import Outcome, Verdict
from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.evaluation.results import EvaluationStamp, TrajectoryResult
from aepo_lightning.evaluation.results_file import ResultsFile, results_path

RIGHT, WRONG = Verdict(score=1.0, is_correct=True), Verdict()
ABSTAINED = Verdict(outcome=Outcome.ABSTAINED, reason="the judge was not reached")
UNSCORED = Verdict(outcome=Outcome.UNSCORED, reason="too long")
VERDICTS = {"1": RIGHT, "0": WRONG, "?": ABSTAINED, "-": UNSCORED}


def make_result(question_id="q0", sample=0, verdict=RIGHT, **changes):
    """Return a trajectory that was right, unless told otherwise."""
    usual = {
        "benchmark": "riddles",
        "question": f"what is {question_id}?",
        "golds": ("42",),
        "response_text": "<answer>\\boxed{42}</answer>",
        "answer": "42",
        "stop_reason": StopReason.EOS,
    }
    return TrajectoryResult(question_id=question_id, sample=sample, verdict=verdict, **(usual | changes))


def make_results(*verdicts, **changes):
    """Return the trajectories of some questions: `make_results("110", "0?1")` has three of each of two.

    Args:
        verdicts: A letter for each sample: 1 right, 0 wrong, ? abstained, - unscored.
        changes: Fields of all of them.
    """
    return [
        make_result(f"q{number}", sample, VERDICTS[letter], **changes)
        for number, letters in enumerate(verdicts)
        for sample, letter in enumerate(letters)
    ]


def make_stamp(**changes):
    """Return the stamp of an evaluation of riddles."""
    usual = {
        "benchmark": "riddles",
        "benchmark_digest": "d1",
        "protocol": {"limits": {"search": 10, "python": 5}, "stop": ["</search>"]},
        "model": {"name": "small", "global_step": 0},
        "sampling": {"temperature": 0.6, "top_p": 0.95},
        "tools": {"search": "a corpus"},
        "checker": {"kind": "exact_match"},
        "seed": 0,
        "num_samples": 3,
        "versions": {"aepo_lightning": "0.1.0"},
    }
    return EvaluationStamp(**(usual | changes))


def write_evaluation(folder, results, **stamp):
    """Write the folder of an evaluation of one benchmark."""
    made = make_stamp(**stamp)
    with ResultsFile(results_path(folder, made.benchmark), made) as file:
        for result in results:
            file.append(result)
    return folder
