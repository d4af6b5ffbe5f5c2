"""A language model as a judge of answers: an `AnswerChecker` behind any endpoint with OpenAI's chat protocol.

    judge.py      `LLMJudge`: rule, store, endpoint, and what became of each claim
    templates.py  the judges of the paper, HLE, BrowseComp and SimpleQA as data
    template.py   what a template is: instructions, fields of the reply, words of the verdict
    prompt.py     the messages, with everything that is judged behind a fence
    reply.py      what a reply says, read strictly
    endpoint.py   requests through the `openai` client
    attempts.py   another attempt after a pause, until a deadline; none while the server is down
    failures.py   the ways to come to no verdict, each with a name
    settings.py   limits and prices
    store.py      verdicts that were given, in one SQLite file
    counts.py     calls, tokens, cost, abstentions by kind

A judge that is not reached, or answers with what is no verdict, abstains and says why. It never guesses a score.
"""

from aepo_lightning.rewards.judge.counts import JudgeCounts
from aepo_lightning.rewards.judge.failures import AbstentionKind
from aepo_lightning.rewards.judge.judge import LLMJudge
from aepo_lightning.rewards.judge.settings import JudgeLimits, JudgePrices
from aepo_lightning.rewards.judge.template import JudgeTemplate, Ruling
from aepo_lightning.rewards.judge.templates import TEMPLATES

__all__ = [
    "TEMPLATES",
    "AbstentionKind",
    "JudgeCounts",
    "JudgeLimits",
    "JudgePrices",
    "JudgeTemplate",
    "LLMJudge",
    "Ruling",
]
