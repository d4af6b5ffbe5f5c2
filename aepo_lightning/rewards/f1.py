"""Token F1 and exact match between two short answers, after SQuAD normalisation.

Punctuation disappears before the comparison, so these are measures for words, not for mathematics: `-5` and `5` are
equal here, `1/2` and `0.5` are not. `typed.py` compares numbers as numbers.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
VERDICTS = frozenset({"yes", "no", "noanswer"})
"""Answers of which a part is worth nothing."""


def normalize_answer(text: str) -> str:
    """Lower the case, drop ASCII punctuation and the articles a, an, the, and squeeze white space.

    Args:
        text: Any answer.

    Returns:
        The words that count, joined by single spaces. Empty if nothing is left.

    References:
        SQuAD, arXiv:1606.05250, evaluation script.
    """
    return " ".join(split_words(text.lower()))


def split_words(lowered: str, keep_articles: bool = False) -> list[str]:
    """Return the words of a text in lower case, without ASCII punctuation and, unless they are kept, articles."""
    words = lowered.translate(_DROP_PUNCTUATION)
    return (words if keep_articles else _ARTICLES.sub(" ", words)).split()


def exact_match(prediction: str, answer: str) -> bool:
    """Tell whether two answers are the same after normalisation.

    An answer of which normalisation leaves nothing matches nothing, itself included: `exact_match` then agrees with
    `token_f1`, which is 0 there and 1 for every other exact match.

    Args:
        prediction: What the policy answered.
        answer: One accepted answer.

    Returns:
        True for equal, non-empty normal forms.
    """
    normal = normalize_answer(prediction)
    return bool(normal) and normal == normalize_answer(answer)


def token_f1(prediction: str, answer: str) -> float:
    """Return the F1 score of the bags of words of two answers.

    If either side is `yes`, `no` or `noanswer`, a partial overlap would reward the wrong verdict, so the two must then
    be equal or the score is 0.

    Args:
        prediction: What the policy answered.
        answer: One accepted answer.

    Returns:
        Harmonic mean of precision and recall over words, in [0, 1]. 0 if either side has no words.

    References:
        SQuAD, arXiv:1606.05250, section 6.1; the verdict rule is that of HotpotQA, arXiv:1809.09600.
    """
    normal_prediction, normal_answer = normalize_answer(prediction), normalize_answer(answer)
    if normal_prediction != normal_answer and VERDICTS & {normal_prediction, normal_answer}:
        return 0.0
    return bag_f1(normal_prediction.split(), normal_answer.split())


def bag_f1(predicted: Sequence[str], accepted: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall over words, in [0, 1]. 0 if either side has none."""
    num_common = sum((Counter(predicted) & Counter(accepted)).values())
    if num_common == 0:
        return 0.0
    precision, recall = num_common / len(predicted), num_common / len(accepted)
    return 2 * precision * recall / (precision + recall)
