"""A whole iteration on the quickstart task: rollouts with tool calls, old log-probs and optimiser steps, against TRL.

    python -m benchmarks.step --trl PYTHON [--rounds 15] [--policy FOLDER]

Both sides train the quickstart's policy after its cold start on the same questions of the trail task: 32 questions with
8 independent samples each, at most 96 tokens and 6 searches per sample, then 4 optimiser steps of 64 trajectories with
GRPO's clipped loss averaged over tokens, AdamW and clipped gradients, in float32. Both recompute old log-probs and both
generate with Hugging Face models in the training process; TRL uses its `environment_factory` for the search tool and
`generate` of transformers (with `--continuous-batching`, transformers' continuous batching). Nothing is saved during
the measured iterations but our journal of the rollouts and the weights that they used. `ours_aepo` is the quickstart as
it is, whose samples branch: it gets as many trajectories from fewer sampled tokens.

Every side is a process of its own that lives through the benchmark. After one iteration that does not count, each
tries one thread and two and keeps what is faster for it; then they take turns, in an order that changes from round to
round. (Where other work keeps the cores busy, two threads wait for each other: give `--threads 1`.) The policies are
trained meanwhile, each by its own side, and sampled tokens, searches and the share of right answers show that they do
the same work. Ratios are medians of the ratio within a round.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from aepo_lightning.app.build import build
from benchmarks.support.common import print_result
from benchmarks.support.peers import Peer
from benchmarks.support.policies import quickstart_config, quickstart_policy

ROOT = Path(__file__).resolve().parent.parent
NUM_QUESTIONS, QUESTIONS_PER_STEP, SAMPLES = 32, 8, 8
GOAL = 0.5
"""Most of TRL's time that an iteration may take."""

Answer = dict[str, Any]


def prepare(folder: Path, policy: str | None, iterations: int) -> None:
    """Put the policy and the questions of all iterations into the folder."""
    cfg = quickstart_config()
    print("policy: " + (policy or "cold start, some minutes"), flush=True)
    source: Any = quickstart_policy(cfg, policy, folder)
    shutil.copytree(source.name_or_path, folder / "policy")
    task = build(cfg.data.task)
    questions = [task.question("train", index) for index in range(NUM_QUESTIONS * iterations)]
    rows = [
        {
            "prompt": [{"role": message.role, "content": message.content} for message in question.messages],
            "answer": question.answers[0],
            "documents": json.dumps(dict(question.documents)),
        }
        for question in questions
    ]
    (folder / "questions.json").write_text(json.dumps(rows))


def start_sides(arguments: argparse.Namespace, folder: Path, iterations: int, stack: ExitStack) -> dict[str, Peer]:
    """Start a process for every side."""
    settings = {
        "questions_per_step": QUESTIONS_PER_STEP,
        "samples": SAMPLES,
        "steps": NUM_QUESTIONS // QUESTIONS_PER_STEP,
        "iterations": iterations,
        "max_tokens": 96,
        "max_tool_calls": 6,
        "continuous_batching": arguments.continuous_batching,
    }
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(arguments.threads)), "TOKENIZERS_PARALLELISM": "false"}
    own_environment = {**environment, "PYTHONPATH": str(ROOT)}
    sides = {}
    for algorithm in ("grpo", "aepo"):
        given = [str(folder), json.dumps({**settings, "algorithm": algorithm})]
        sides[f"ours_{algorithm}"] = stack.enter_context(Peer(sys.executable, "own_step.py", given, own_environment))
    if arguments.trl:
        given = [str(folder), json.dumps(settings)]
        sides["trl"] = stack.enter_context(Peer(arguments.trl, "trl_step.py", given, environment))
    return sides


def pick_threads(name: str, side: Peer, choices: Sequence[int]) -> int:
    """Return with how many threads a side is faster, after an iteration that does not count."""
    side({"threads": choices[0]})
    wall = {threads: float(side({"threads": threads})["wall_s"]) for threads in choices}
    print(f"{name}: seconds by threads {json.dumps(wall)}", flush=True)
    return min(wall, key=lambda threads: wall[threads])


def take_turns(sides: Mapping[str, Peer], threads: Mapping[str, int], rounds: int) -> dict[str, list[Answer]]:
    """Run the rounds and return every answer."""
    answers: dict[str, list[Answer]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in sorted(sides, reverse=bool(number % 2)):
            answers[name].append(sides[name]({"threads": threads[name]}))
            print(f"round {number} {name} {answers[name][-1]['wall_s']:.2f} s", flush=True)
    return answers


def summary(answers: Sequence[Answer]) -> Answer:
    """Return the medians of one side."""
    found: Answer = {
        key: round(statistics.median(answer[key] for answer in answers), 3) for key in answers[0] if key != "sections"
    }
    names = sorted({name for answer in answers for name in answer["sections"]})
    found["sections_s"] = {
        name: round(statistics.median(answer["sections"].get(name, 0.0) for answer in answers), 3) for name in names
    }
    return found


def ratio(top: Sequence[Answer], bottom: Sequence[Answer], key: str) -> float:
    """Return the median of the ratio within a round."""
    return round(statistics.median(t[key] / b[key] for t, b in zip(top, bottom, strict=True)), 3)


def print_table(sides: Mapping[str, Answer]) -> None:
    """Print where the time goes."""
    names = sorted({name for side in sides.values() for name in side["sections_s"]})
    print(f"{'seconds':20s}" + "".join(f"{name:>12s}" for name in sides))
    for section in names:
        print(f"{section:20s}" + "".join(f"{side['sections_s'].get(section, 0.0):12.2f}" for side in sides.values()))
    for key in ("wall_s", "cpu_s", "sampled_tokens", "tokens", "tool_calls", "correct"):
        print(f"{key:20s}" + "".join(f"{side[key]:12.2f}" for side in sides.values()), flush=True)


def main() -> None:
    """Measure and print the table and the closing line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to try")
    parser.add_argument("--policy", help="a folder with the quickstart's policy after its cold start")
    parser.add_argument("--trl", help="an interpreter that has TRL")
    parser.add_argument("--continuous-batching", action="store_true", help="let TRL use it")
    arguments = parser.parse_args()
    iterations = 1 + len(arguments.threads) + arguments.rounds
    figures: dict[str, Any] = {"load_before": os.getloadavg()}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepare(folder, arguments.policy, iterations)
        sides = start_sides(arguments, folder, iterations, stack)
        threads = {name: pick_threads(name, side, arguments.threads) for name, side in sides.items()}
        answers = take_turns(sides, threads, arguments.rounds)
    found = {name: summary(values) for name, values in answers.items()}
    print_table(found)
    figures |= {"threads": threads, "sides": found, "load_after": os.getloadavg()}
    goals = {}
    if "trl" in answers:
        figures["over_trl"] = {
            name: {key: ratio(answers[name], answers["trl"], key) for key in ("wall_s", "cpu_s", "sampled_tokens")}
            for name in answers
            if name != "trl"
        }
        goals["an iteration over TRL's"] = (figures["over_trl"]["ours_grpo"]["wall_s"], "<=", GOAL)
    print_result("step", figures, goals)


if __name__ == "__main__":
    main()
