"""What an evaluation costs beside bare generation, what ten kills cost it, and whether it agrees with training.

    python -m benchmarks.evaluation [--questions 48] [--pairs 9] [--kills 10] [--run RUN_FOLDER]

Overhead: the same questions and samples by the sampler alone, in memory, and by an `Evaluator` that makes its parts,
reads and stamps the questions, and writes journal and results; in turn, each first in every other pair, in this process
and on one thread, with a policy of 6 M parameters made from nothing: whatever is not generation weighs more beside it
than beside any language model. What was there before the pairs is not looked through by the collector of garbage: once
in ten evaluations that takes as long as what is measured. Kills: an evaluation by the quickstart's policy in a process
of its own gets SIGKILL at random times; what was generated more than once is counted in tokens. A kill costs the turns
that were being generated, so the share depends on how many there are at once and on the size of the whole. With
`--run`, a finished main job is asked its own held-out questions again, and every figure is compared with what its
training printed.
"""

import argparse
import gc
import json
import multiprocessing
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

from aepo_lightning.app.build import build, build_tools
from aepo_lightning.app.evaluation.own_command import unequal
from aepo_lightning.app.evaluation.own_questions import evaluate_run, printed_by_training
from aepo_lightning.app.saved_run import load_config
from aepo_lightning.contracts.checker import Claim, Verdict
from aepo_lightning.engines.transformers.engine import TransformersEngine
from aepo_lightning.evaluation.benchmark import Benchmark
from aepo_lightning.evaluation.evaluated_policy import evaluated
from aepo_lightning.evaluation.evaluator import EvaluationChoices, Evaluator
from aepo_lightning.evaluation.protocol import EvaluationProtocol
from aepo_lightning.evaluation.task_questions import TaskQuestions
from aepo_lightning.rollout import RolloutSampler, SamplingSettings, derive_seed
from benchmarks.support.common import print_result
from benchmarks.support.policies import quickstart_config

NUM_SAMPLES = 4
ARCHITECTURE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8}
"""Of 6 M parameters, a twentieth of the smallest language models."""
AT_ONCE = 4
"""Questions that grow at once where processes are killed: what is in flight is what a kill costs."""
_LOOK_S = 0.002


async def same_words(claim: Claim) -> Verdict:
    """The rule."""
    is_correct = claim.answer in claim.golds
    return Verdict(score=float(is_correct), is_correct=is_correct)


def make_parts(
    num_questions: int, at_once: int, architecture: Mapping[str, int]
) -> tuple[Evaluator, Benchmark, TransformersEngine]:
    """Return what evaluates a policy made from nothing on the quickstart's task.

    Args:
        num_questions: How many are asked.
        at_once: How many of them grow at once.
        architecture: What differs from the quickstart's policy.
    """
    torch.set_num_threads(1)
    larger = [f"model.architecture.{name}={value}" for name, value in architecture.items()]
    cfg = quickstart_config(f"data.task.num_val_questions={num_questions}", *larger)
    policy = evaluated(build(cfg.model))
    engine = TransformersEngine(policy.source, max_num_seqs=64, max_model_len=256)
    benchmark = Benchmark(
        name="trails",
        title="Trails",
        source=TaskQuestions(task=build(cfg.data.task)),
        checker=same_words,
        protocol=EvaluationProtocol(
            prompt="search",
            num_samples=NUM_SAMPLES,
            max_model_len=256,
            extraction="boxed",
            sampling=SamplingSettings(max_response_tokens=96),
        ),
    )
    evaluator = Evaluator(
        engine=engine,
        tokenizer=policy.source.tokenizer,
        model=policy.identity,
        weights=policy.stamp,
        tools=build_tools(cfg.tools),
        choices=EvaluationChoices(max_concurrent_questions=at_once),
        is_shown=False,
    )
    return evaluator, benchmark, engine


def measure_overhead(num_questions: int, num_pairs: int) -> dict[str, Any]:
    """Return the share by which evaluations take longer than bare generation, pair by pair."""
    evaluator, benchmark, engine = make_parts(num_questions, 64, ARCHITECTURE)
    parts = evaluator.parts(benchmark)
    questions = evaluator.questions(benchmark, parts)
    seed = derive_seed(0, "benchmark", benchmark.name)

    def evaluate() -> None:
        with tempfile.TemporaryDirectory() as folder:
            evaluator.evaluate(benchmark, Path(folder))

    sides = {"bare": lambda: RolloutSampler(parts, 64).rollout(questions, seed), "whole": evaluate}
    rows = []
    for number in range(num_pairs + 1):
        gc.collect()
        gc.freeze()
        timed = {name: _timed(sides[name], engine) for name in sorted(sides, reverse=number % 2 == 1)}
        bare, whole = timed["bare"], timed["whole"]
        print(f"pair {number}: bare {bare[0]:.2f} s of CPU, evaluated {whole[0]:.2f} s; {whole[2]} tokens", flush=True)
        if bare[2] != whole[2]:
            raise SystemExit("both sides must generate the same tokens")
        if number:  # the first pair warms up
            rows.append((whole[0] / bare[0] - 1, whole[1] / bare[1] - 1))
    cpu, wall = zip(*rows, strict=True)
    return {"overhead_cpu": statistics.median(cpu), "overhead_wall": statistics.median(wall), "pairs": rows}


def _timed(work: Any, engine: TransformersEngine) -> tuple[float, float, int]:
    """Return seconds of CPU, seconds, and generated tokens."""
    engine.load_weights(evaluated_weights(engine), 0)  # both sides start without cached prefixes
    tokens, cpu, wall = engine.counters.num_generated_tokens, process_time(), perf_counter()
    work()
    return process_time() - cpu, perf_counter() - wall, engine.counters.num_generated_tokens - tokens


def evaluated_weights(engine: TransformersEngine) -> list[tuple[str, torch.Tensor]]:
    """Return the weights that the engine has."""
    return [(name, weight.detach().clone()) for name, weight in engine._model.named_parameters()]


def evaluate_in_process(folder: str, num_questions: int, counter: "Synchronized[int]") -> None:
    """Evaluate, and note all the while how many tokens were generated."""
    evaluator, benchmark, engine = make_parts(num_questions, AT_ONCE, {})

    def note() -> None:
        while True:
            counter.value = engine.counters.num_generated_tokens
            time.sleep(_LOOK_S)

    threading.Thread(target=note, daemon=True).start()
    evaluator.evaluate(benchmark, Path(folder))
    counter.value = engine.counters.num_generated_tokens


def measure_kills(num_questions: int, num_kills: int) -> dict[str, Any]:
    """Return which share of the work an evaluation repeats that is killed so many times, at random."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as folder:
        counter = context.Value("q", 0)
        _run(context, whole, num_questions, counter, None)
        once = counter.value
        dice, total = random.Random(0), 0
        for number in range(num_kills):
            share = (number + dice.random()) / (num_kills + 1)
            total += _run(context, folder, num_questions, counter, int(share * once) - total)
            print(f"kill {number + 1}: {total} tokens so far", flush=True)
        total += _run(context, folder, num_questions, counter, None)
        same = _results(whole) == _results(folder)
    return {"tokens_once": once, "tokens_with_kills": total, "repeated_share": total / once - 1, "is_same": same}


def _run(context: Any, folder: str, num_questions: int, counter: "Synchronized[int]", until: int | None) -> int:
    """Run an evaluation in a process, which is killed after some tokens; return how many it generated."""
    counter.value = 0
    process = context.Process(target=evaluate_in_process, args=(folder, num_questions, counter))
    process.start()
    while process.is_alive() and (until is None or counter.value < max(until, 1)):
        time.sleep(_LOOK_S)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return counter.value


def _results(folder: str) -> dict[tuple[str, int], str]:
    """Return what was answered, by question and sample."""
    lines = Path(folder, "results", "trails.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    found = [json.loads(line) for line in lines]
    return {(each["question_id"], each["sample"]): each["response_text"] for each in found}


def compare_run(run: Path) -> dict[str, Any]:
    """Return which figures of a finished run differ from what its training printed.

    Raises:
        SystemExit: If the run did not come as far as to print them.
    """
    printed = printed_by_training(run)
    if not printed:
        raise SystemExit(f"--run must be a finished run, but {run} has no figures of its last evaluation.")
    with tempfile.TemporaryDirectory() as target:
        found = evaluate_run(load_config(run), run, Path(target))
    return {"num_figures": len(printed), "unequal": unequal(found, printed), "pass@1": found["val/pass@1"]}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=48, help="of the overhead; four samples each")
    parser.add_argument("--pairs", type=int, default=9, help="of bare generation and evaluation")
    parser.add_argument("--kill-questions", type=int, default=1200, help="of the evaluation that is killed")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--run", type=Path, help="folder of a finished main job")
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    goals: dict[str, tuple[float, str, float]] = {}
    if args.pairs:
        figures["overhead"] = found = measure_overhead(args.questions, args.pairs)
        goals |= {name: (found[name], "<=", 0.05) for name in ("overhead_cpu", "overhead_wall")}
    if args.kills:
        figures["kills"] = found = measure_kills(args.kill_questions, args.kills)
        goals |= {"repeated_share": (found["repeated_share"], "<=", 0.01), "same": (found["is_same"], ">=", 1)}
    if args.run is not None:
        figures["run"] = found = compare_run(args.run)
        goals["figures_that_differ"] = (len(found["unequal"]), "<=", 0)
    print_result("evaluation", figures, goals)


if __name__ == "__main__":
    main()
