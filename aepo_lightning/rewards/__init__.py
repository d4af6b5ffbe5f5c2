r"""What an answer is worth.

    f1.py             SQuAD normalisation, token F1, exact match
    typed.py          numbers compared as numbers, choices as choices
    boxed.py          the last `\boxed{...}` of a text
    answer_format.py  which rule of the trajectory grammar a text breaks
    tool_use.py       which tools a trajectory used
    paper.py          `PaperReward`: format, F1 and the bonus for using both tools
    answer_term.py    the answer as a term of a reward, by any checker
    terms.py          others: format, tools, overlong, length
    sum.py            `RewardSum`: named terms, weighed, bounded and added up (term_settings.py, limited_term.py)
    function.py       plain functions as rewards; `@reward`
    process.py        plain functions in processes of their own
    extraction.py     the answer of a response that need not be well-formed, as evaluation reads it
    checkers/         one answer against the accepted ones: words, choices, benchmarks, mathematics
    judge/            `LLMJudge`: a language model that judges answers

Rewards see finished trajectories as data (`RewardInput`) and know nothing of engines, tools or tokenizers. The names of
the judge are imported when they are first used.
"""

from typing import TYPE_CHECKING

from aepo_lightning.lazy_names import homes as _homes
from aepo_lightning.lazy_names import importer as _importer
from aepo_lightning.rewards.answer_format import find_format_problem
from aepo_lightning.rewards.answer_term import AnswerTerm
from aepo_lightning.rewards.boxed import last_boxed
from aepo_lightning.rewards.f1 import exact_match, normalize_answer, token_f1
from aepo_lightning.rewards.function import FunctionReward, as_reward, reward
from aepo_lightning.rewards.paper import PaperReward
from aepo_lightning.rewards.sum import RewardSum
from aepo_lightning.rewards.terms import FormatTerm, LengthTerm, OverlongTerm, ToolTerm

if TYPE_CHECKING:
    from aepo_lightning.rewards.judge import JudgeLimits, JudgePrices, JudgeTemplate, LLMJudge

__getattr__ = _importer(
    __name__, __name__, _homes({"judge": "JudgeLimits JudgePrices JudgeTemplate LLMJudge"}), globals()
)

__all__ = [
    "AnswerTerm",
    "FormatTerm",
    "FunctionReward",
    "JudgeLimits",
    "JudgePrices",
    "JudgeTemplate",
    "LLMJudge",
    "LengthTerm",
    "OverlongTerm",
    "PaperReward",
    "RewardSum",
    "ToolTerm",
    "as_reward",
    "exact_match",
    "find_format_problem",
    "last_boxed",
    "normalize_answer",
    "reward",
    "token_f1",
]


def __dir__() -> list[str]:
    """Return the public names."""
    return [*__all__]
