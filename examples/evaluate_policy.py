"""A policy on a benchmark of one's own: questions, a rule, results on disk, and the score with its interval.

python examples/evaluate_policy.py
"""

from pathlib import Path

from aepo_lightning import (
    Benchmark,
    DocumentSearch,
    EvaluationProtocol,
    SamplingSettings,
    ScratchPolicy,
    TaskQuestions,
    TrailTask,
    build_word_tokenizer,
    evaluate,
)
from aepo_lightning.contracts.checker import Claim, Verdict
from aepo_lightning.evaluation.report import Report
from aepo_lightning.evaluation.results_file import read_evaluation

TINY = {"model_type": "qwen3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
TINY |= {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}


async def same_words(claim: Claim) -> Verdict:
    """A rule: what it finds is a verdict."""
    is_correct = claim.answer in claim.golds
    return Verdict(score=float(is_correct), is_correct=is_correct)


task = TrailTask(num_val_questions=20)
policy = ScratchPolicy(tokenizer=build_word_tokenizer(task.words), architecture=TINY)
benchmark = Benchmark(
    name="trails",
    title="Trails",
    source=TaskQuestions(task=task),
    checker=same_words,
    protocol=EvaluationProtocol(
        prompt="search",  # the tools on offer
        num_samples=4,
        max_model_len=256,
        sampling=SamplingSettings(max_response_tokens=96, on_call_limit="tell"),
    ),
)

results = evaluate(policy, benchmark, tools=[DocumentSearch()], folder="runs/eval/trails")  # goes on if it was cut off
print(results[0].question, "->", results[0].answer.split("\n")[-1][:40] or "no answer")

report = Report.of(read_evaluation(Path("runs/eval/trails")))
print(f"{len(results)} trajectories of {len({each.question_id for each in results})} questions:")
print(report.to_markdown())
