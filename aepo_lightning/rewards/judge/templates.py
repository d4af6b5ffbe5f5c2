"""The judges of the benchmarks, in words of this library, with the fields and the verdicts of the public ones.

The public judges see question, accepted answer and response in one message and reply with lines or a letter. Here the
reply is a JSON object with the same fields, and what is judged stands behind a fence. Their instructions can be had
word for word in a `JudgeTemplate` of your own.

References:
    `paper`: the released evaluation code of AEPO, arXiv:2510.14545, gives its judge question, accepted answers and
    prediction and asks for Correct or Incorrect.
    `hle`: Humanity's Last Exam, arXiv:2501.14249. `browsecomp`: BrowseComp, arXiv:2504.12516, which takes over the
    judge of HLE, as read in OpenAI's simple-evals; that of HLE itself was read there, too.
    `simpleqa`: SimpleQA, arXiv:2411.04368, as read in simple-evals.
"""

from collections.abc import Mapping
from dataclasses import replace

from aepo_lightning.rewards.judge.template import JudgeTemplate

_PAPER = JudgeTemplate(
    name="paper",
    instructions=(
        "You check answers to questions. Compare the answer to be judged with the accepted answers; each of these is "
        "right by itself. The answer is correct if it says the same as one of them, in other words, another notation, "
        "another unit or with harmless detail. It is incorrect if it says something else, leaves out what was asked, "
        "or offers several answers of which one is wrong. Do not solve the question yourself and do not doubt the "
        "accepted answers. If they do not let you decide, abstain."
    ),
    fields={
        "reason": "One or two sentences: how the answer relates to the accepted answers.",
        "verdict": "correct, incorrect, or abstain if this cannot be decided.",
    },
)

_HLE_FIELDS = {
    "extracted_final_answer": "The final answer as the answer to be judged gives it, or None if it gives none.",
    "reasoning": "Whether differences between it and the accepted answers matter. Nothing else.",
    "correct": "yes if it equals an accepted answer, for a number within a small margin; else no.",
    "confidence": "How certain the answer to be judged says that it is, in percent; 100 if it does not say.",
}

_HLE_INSTRUCTIONS = (
    "Find out whether the answer to be judged gives the accepted answer, which is exact and not in doubt. First take "
    "the one final answer out of it. Then say only whether that differs in a way that matters: do not comment on the "
    "subject, do not solve the problem, and do not argue for another answer. Say yes if both agree, or lie within a "
    "small margin where they are numbers. Say no at any contradiction, ambiguity or lack of equivalence, and if "
    "there is no final answer."
)

_HLE = JudgeTemplate(
    name="hle",
    instructions=_HLE_INSTRUCTIONS,
    fields=_HLE_FIELDS,
    verdict_field="correct",
    reason_field="reasoning",
    percent_fields=("confidence",),
    words={"yes": "correct", "no": "incorrect"},
)

_BROWSECOMP = replace(_HLE, name="browsecomp")

_SIMPLEQA = JudgeTemplate(
    name="simpleqa",
    instructions=(
        "Grade a short factual answer against the accepted one. CORRECT: all that matters of the accepted answer is "
        "there and nothing contradicts it; case, order, punctuation, misspelt names and hedging do not matter, and "
        "what the question already implies may be left out. A number must agree up to the last significant digit of "
        "the accepted one. INCORRECT: something in it contradicts the accepted answer, also if it is hedged or one "
        "of several guesses. NOT_ATTEMPTED: it neither gives the accepted answer nor contradicts it, such as by "
        "not knowing, by asking back, or by giving only a part or a vague range."
    ),
    fields={
        "reason": "One or two sentences: what agrees with the accepted answer, and what contradicts it.",
        "grade": "CORRECT, INCORRECT or NOT_ATTEMPTED.",
    },
    verdict_field="grade",
    words={"CORRECT": "correct", "INCORRECT": "incorrect", "NOT_ATTEMPTED": "incorrect"},
)

TEMPLATES: Mapping[str, JudgeTemplate] = {each.name: each for each in (_PAPER, _HLE, _BROWSECOMP, _SIMPLEQA)}
"""Name to template."""
