"""Questions by their place in a run."""

from aepo_lightning.tasks import ListedQuestions
from aepo_lightning.training.question_stream import QuestionStream
from tests.support.training import TASK

ROWS = [{"question": f"q{number}", "answer": "a"} for number in range(3)]


def test_what_a_run_has_asked_is_found_by_its_id():
    for stream in (QuestionStream(task=TASK, questions_per_iteration=4), QuestionStream(
        task=ListedQuestions(ROWS), questions_per_iteration=2
    )):  # fmt: skip
        for question in stream.train(7):
            assert stream.asked(question.question_id) == question


def test_an_id_of_other_data_is_not_found():
    stream = QuestionStream(task=ListedQuestions(ROWS), questions_per_iteration=2)
    own = stream.train(1)[0].question_id
    assert stream.asked(own) is not None
    for other in (own.replace("1:", "2:", 1), own.replace("1:", "x:", 1), "nobody", ""):
        assert stream.asked(other) is None
