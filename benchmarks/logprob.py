"""Log-probs and entropies from hidden states: all logits at once against blocks of them, in time, memory and accuracy.

    python -m benchmarks.logprob [--rounds 3] [--threads 2] [--trl PYTHON]

The last hidden states have width 1,024 and the vocabulary 151,936 words, as in Qwen3-0.6B; one job is forward and
backward pass over N tokens at temperature 0.7 with a gradient for hidden states and weight, entropies included.
`naive` is `log_softmax(hidden @ weight.T / temperature)` by autograd. With `--trl`, an interpreter that has TRL and
Liger runs their functions on the same inputs. Every side is a process of its own that lives through the benchmark; they
take turns, in an order that changes from round to round, and ratios are medians of the ratio within a round.

`peak_mb` is how far the resident memory of the process rises above what it was with the inputs only. `working_mb`
leaves out the gradients of hidden states and weight, which every side returns (610 MB in float32 at 4,096 tokens): the
goals are about what comes on top of them. A job for which the machine has too little free memory is left out by name.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.support.common import print_result
from benchmarks.support.peers import Peer

WIDTH, WORDS = 1024, 151936
TOKENS = 4096
CURVE = (512, 1024, 2048, 8192)
DTYPES = ("float32", "bfloat16")
GOALS = {"float32": 20.0, "bfloat16": 8.0}
"""Least naive working memory over ours."""
NAIVE_COPIES = {"detached": 4.3, "grad": 5.4}
"""Tensors of the size of all logits that naive holds at once at most, with a margin."""

Figures = dict[str, Any]


def start_sides(arguments: argparse.Namespace, stack: ExitStack) -> dict[str, Peer]:
    """Start a process for every side."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "TOKENIZERS_PARALLELISM": "false"}
    pythons = dict.fromkeys(("naive", "ours", "ours_float32_head"), sys.executable)
    if arguments.trl:
        pythons |= {"trl": arguments.trl, "liger": arguments.trl}
    return {
        name: stack.enter_context(Peer(python, "logprob_side.py", [name, str(arguments.threads)], environment))
        for name, python in pythons.items()
    }


def has_room(name: str, job: Mapping[str, Any]) -> bool:
    """Return whether the machine has the memory that naive needs."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    size = job["tokens"] * job["words"] * getattr(torch, job["dtype"]).itemsize
    return name != "naive" or NAIVE_COPIES[job["entropy"]] * size < free


def measure(sides: Mapping[str, Peer], job: Mapping[str, Any], rounds: int) -> Figures:
    """Return figures of a job for every side that has the memory for it."""
    able = {name: side for name, side in sides.items() if has_room(name, job)}
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in able}
    for number in range(rounds):
        for name in sorted(able, reverse=bool(number % 2)):
            answers[name].append(able[name](job))
    found: Figures = {name: medians(values) for name, values in answers.items()}
    found["left_out"] = sorted(set(sides) - set(able))
    if "naive" in able:
        found["ours_over_naive"] = {
            key: round(
                statistics.median(o[key] / n[key] for o, n in zip(answers["ours"], answers["naive"], strict=True)), 3
            )
            for key in ("wall_s", "cpu_s", "peak_mb")
        }
        found["naive_over_ours_working_mb"] = round(found["naive"]["working_mb"] / found["ours"]["working_mb"], 1)
    print(
        " ".join(f"{value}" for key, value in job.items() if key not in ("words", "width")),
        json.dumps(found),
        flush=True,
    )
    return found


def medians(answers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of every figure; memory is that of the first round, before anything could be reused."""
    found = {key: round(statistics.median(a[key] for a in answers), 2) for key in answers[0]}
    return found | {key: round(answers[0][key]) for key in ("peak_mb", "working_mb")}


def accuracy(sides: Mapping[str, Peer], folder: Path) -> Figures:
    """Return how far each side is from naive float64 on the same inputs: 256 tokens, 32,768 words."""
    found: Figures = {}
    for dtype in DTYPES:
        job = {"tokens": 256, "words": 32768, "width": WIDTH, "dtype": dtype, "entropy": "grad"}
        exact = results(sides["naive"], {**job, "dtype": "float64", "rounded": dtype}, folder)
        for name, side in sides.items():
            logprobs, entropies, *gradients = results(side, job, folder)
            found[f"{dtype} {name}"] = {
                "logprob_max": significant((logprobs - exact[0]).abs().max()),
                "entropy_max": significant((entropies - exact[1]).abs().max()),
                "grad_hidden_l2": significant((gradients[0] - exact[2]).norm() / exact[2].norm()),
                "grad_weight_l2": significant((gradients[1] - exact[3]).norm() / exact[3].norm()),
            }
            print("accuracy", dtype, name, json.dumps(found[f"{dtype} {name}"]), flush=True)
    return found


def results(side: Peer, job: Mapping[str, Any], folder: Path) -> list[Tensor]:
    """Return log-probs, entropies and both gradients of a job."""
    path = folder / "results.pt"
    side({**job, "save": str(path)})
    return [tensor.double() for tensor in torch.load(path)]


def significant(value: Tensor) -> float:
    """Round to two significant digits."""
    return float(f"{float(value):.1e}")


def run(arguments: argparse.Namespace) -> tuple[Figures, dict[str, tuple[float, str, float]]]:
    """Measure everything and return figures and goals."""
    figures: Figures = {"load_before": os.getloadavg(), "threads": arguments.threads}
    goals: dict[str, tuple[float, str, float]] = {}
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        sides = start_sides(arguments, stack)
        pair = {name: sides[name] for name in ("naive", "ours")}
        figures["accuracy"] = accuracy(sides, Path(folder))
        for dtype in arguments.dtypes:
            job = {"tokens": TOKENS, "words": WORDS, "width": WIDTH, "dtype": dtype, "entropy": "detached"}
            figures[f"{dtype} {TOKENS}"] = found = measure(pair, job, arguments.rounds)
            if "ours_over_naive" in found:
                goals[f"{dtype} working memory, naive over ours"] = (
                    found["naive_over_ours_working_mb"],
                    ">=",
                    GOALS[dtype],
                )
                goals[f"{dtype} wall time over naive"] = (found["ours_over_naive"]["wall_s"], "<=", 1.2)
            others = {
                n: side for n, side in sides.items() if n != "naive" and (n, dtype) != ("ours_float32_head", "float32")
            }
            figures[f"{dtype} {TOKENS} others"] = measure(others, job, 1)
            figures[f"{dtype} {TOKENS} entropy bonus"] = measure(pair, {**job, "entropy": "grad"}, 1)
            for tokens in CURVE if not arguments.no_curve else ():
                figures[f"{dtype} {tokens}"] = measure(pair, {**job, "tokens": tokens}, 1)
    figures["load_after"] = os.getloadavg()
    return figures, goals


def main() -> None:
    """Measure and print the closing line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help=f"of naive and ours at {TOKENS} tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--no-curve", action="store_true", help=f"leave out {CURVE} tokens")
    parser.add_argument("--trl", help="an interpreter that has TRL and Liger")
    print_result("logprob", *run(parser.parse_args()))


if __name__ == "__main__":
    main()
