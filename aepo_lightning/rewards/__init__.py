r"""What an answer is worth.

    f1.py             SQuAD normalisation, token F1, exact match
    typed.py          numbers compared as numbers, choices as choices
    boxed.py          the last `\boxed{...}` of a text
    answer_format.py  which rule of the trajectory grammar a text breaks
    paper.py          `PaperReward`: format, F1 and the bonus for using both tools
    function.py       plain functions as rewards
    process.py        plain functions in processes of their own
    judge/            `LLMJudge`: a language model that judges answers

Rewards see finished trajectories as data (`RewardInput`) and know nothing of engines, tools or tokenizers.
"""

from aepo_lightning.rewards.answer_format import find_format_problem
from aepo_lightning.rewards.boxed import last_boxed
from aepo_lightning.rewards.f1 import exact_match, normalize_answer, token_f1
from aepo_lightning.rewards.function import FunctionReward, as_reward
from aepo_lightning.rewards.judge import JudgeLimits, JudgePrices, JudgeTemplate, LLMJudge
from aepo_lightning.rewards.paper import PaperReward

__all__ = [
    "FunctionReward",
    "JudgeLimits",
    "JudgePrices",
    "JudgeTemplate",
    "LLMJudge",
    "PaperReward",
    "as_reward",
    "exact_match",
    "find_format_problem",
    "last_boxed",
    "normalize_answer",
    "token_f1",
]
