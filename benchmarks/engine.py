"""The engines, measured on the quickstart policy: start, publication of weights, tokens per second.

    python -m benchmarks.engine [--repeats 5]

Cold starts run in processes of their own, with warm disk caches. The other figures come from this process, in which
both engines hold the same weights; rounds of both alternate, and the ratio is that of the medians.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from hydra import compose, initialize_config_module

from aepo_lightning.app.build import build
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.engines.vllm.engine import VLLMEngine
from benchmarks.support.common import describe_machine, print_result

ROOT = Path(__file__).resolve().parent.parent
BATCHES = (1, 16, 64)
PROMPT_LENGTH = 24
RESPONSE_LENGTH = 64
MAX_MODEL_LEN = 512
NUM_PUBLICATIONS = 30


def quickstart_policy() -> PolicySource:
    """Return the policy of the main job before any training."""
    with initialize_config_module("aepo_lightning.conf", version_base="1.3"):
        policy: PolicySource = build(compose("train").model)
    return policy


def vllm_engine(policy: PolicySource) -> VLLMEngine:
    """Return the engine that is measured; it starts when it is used."""
    return VLLMEngine(
        policy, max_model_len=MAX_MODEL_LEN, max_num_seqs=64, dtype="float32", kv_cache_memory_bytes=64 << 20
    )


def prompt(policy: PolicySource, salt: int) -> list[int]:
    """Return a prompt of tokens that no other salt shares a prefix with, as far as the vocabulary goes."""
    return [(7 * index + 13 * salt + salt // 7) % policy.config.vocab_size for index in range(PROMPT_LENGTH)]


def start(policy: PolicySource) -> tuple[VLLMEngine, float]:
    """Return an engine that has generated its first tokens, and how long that took."""
    begin = perf_counter()
    engine = vllm_engine(policy)
    asyncio.run(engine.generate(prompt(policy, 0), SamplingParams(max_tokens=8)))
    return engine, perf_counter() - begin


def print_cold_start() -> None:
    """Print how long this process needs from the import of vLLM to the first tokens."""
    torch.set_num_threads(1)
    policy = quickstart_policy()
    engine, seconds = start(policy)
    engine.close()
    print(json.dumps(seconds))


def cold_start() -> dict[str, float]:
    """Measure a fresh process: all of it, and from the import of vLLM on."""
    begin = perf_counter()
    command = [sys.executable, "-m", "benchmarks.engine", "--cold"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return {"process_s": perf_counter() - begin, "from_import_s": float(done.stdout.splitlines()[-1])}


def publication_s(engine: VLLMEngine, policy: PolicySource) -> float:
    """Return the median time of one publication."""
    model = policy.build_model()
    times = []
    for version in range(NUM_PUBLICATIONS):
        begin = perf_counter()
        engine.load_weights(model.named_parameters(), version)
        times.append(perf_counter() - begin)
    return statistics.median(times)


async def _keep_busy(engine: Engine, policy: PolicySource, batch: int, num_requests: int) -> int:
    """Return how many tokens `batch` chains generated that ask for one response after the other."""
    salts = iter(range(num_requests))

    async def chain() -> int:
        num_tokens = 0
        for salt in salts:
            params = SamplingParams(max_tokens=RESPONSE_LENGTH, seed=salt)
            generation = await engine.generate(prompt(policy, salt), params)
            num_tokens += len(generation.token_ids)
        return num_tokens

    return sum(await asyncio.gather(*(chain() for _ in range(batch))))


def tokens_per_s(engine: Engine, policy: PolicySource, batch: int) -> float:
    """Return generated tokens per second with `batch` requests in flight."""
    num_requests = max(8, 2 * batch)
    begin = perf_counter()
    num_tokens = asyncio.run(_keep_busy(engine, policy, batch, num_requests))
    return num_tokens / (perf_counter() - begin)


def measure_throughput(engines: dict[str, Engine], policy: PolicySource, repeats: int) -> dict[str, float]:
    """Return the median throughput of both engines at each batch size, and their ratio."""
    figures: dict[str, float] = {}
    for batch in BATCHES:
        for engine in engines.values():
            tokens_per_s(engine, policy, batch)  # the first round warms up
        rounds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(repeats):
            for name, engine in engines.items():
                rounds[name].append(tokens_per_s(engine, policy, batch))
        medians = {name: statistics.median(values) for name, values in rounds.items()}
        for name, value in medians.items():
            figures[f"{name}_tokens_per_s_batch_{batch}"] = round(value)
        figures[f"vllm_over_transformers_batch_{batch}"] = round(medians["vllm"] / medians["transformers"], 2)
        print(f"batch {batch:3d}  " + "  ".join(f"{n} {v:7.0f} tokens/s" for n, v in medians.items()), flush=True)
    return figures


def main() -> None:
    """Run the measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="only print the cold start of this process")
    arguments = parser.parse_args()
    if arguments.cold:
        print_cold_start()
        return
    print(describe_machine(), flush=True)
    torch.set_num_threads(1)
    starts = [cold_start() for _ in range(3)]
    figures: dict[str, Any] = {
        f"cold_start_{name}": round(statistics.median(each[name] for each in starts), 2) for name in starts[0]
    }
    policy = quickstart_policy()
    engine, _ = start(policy)
    seconds = []
    for _ in range(5):
        second, taken = start(policy)
        second.close()
        seconds.append(taken)
    figures["second_engine_s"] = round(statistics.median(seconds), 3)
    figures["publication_s"] = round(publication_s(engine, policy), 4)
    for name, value in figures.items():
        print(f"{name:24s} {value} s", flush=True)
    embedded = TransformersEngine(policy, max_num_seqs=64, max_model_len=MAX_MODEL_LEN)
    figures |= measure_throughput({"transformers": embedded, "vllm": engine}, policy, arguments.repeats)
    goals = {
        "cold_start_s": (figures["cold_start_process_s"], "<=", 20.0),
        "second_engine_s": (figures["second_engine_s"], "<=", 1.0),
        "publication_s": (figures["publication_s"], "<=", 0.1),
    }
    print_result("engine", figures, goals)


if __name__ == "__main__":
    main()
