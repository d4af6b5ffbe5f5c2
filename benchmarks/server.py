"""The server pool, measured on one vLLM server on loopback: start, publication of weights, what a probe costs.

    python -m benchmarks.server [--repeats 5]

The quickstart policy before any training. Rounds without and with a probe alternate: a generation with a probe is two
requests, of which the second finds its prefix cached.
"""

import argparse
import asyncio
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import torch

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.engines.vllm_server.engine import VLLMServerEngine
from benchmarks.engine import MAX_MODEL_LEN, prompt, quickstart_policy
from benchmarks.support.common import describe_machine, print_result

NUM_REQUESTS = 48
RESPONSE_LENGTH = 100
NUM_PROBE_TOKENS = 20
IN_FLIGHT = 16
NUM_PUBLICATIONS = 15


def launch(policy: PolicySource, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start a server with the policy and return its process and address."""
    policy.build_model().save_pretrained(folder / "model")
    policy.tokenizer.save_pretrained(folder / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "aepo_lightning.engines.vllm_server.launch", str(folder / "model")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-num-seqs", "64"]
    command += ["--max-model-len", str(MAX_MODEL_LEN), "--kv-cache-memory-bytes", "64M"]
    command += ["--disable-uvicorn-access-log"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    return process, f"http://127.0.0.1:{port}"


def generate(engine: VLLMServerEngine, policy: PolicySource, num_probe_tokens: int, salt: int) -> float:
    """Return the tokens per second of one round."""

    async def run() -> int:
        places = asyncio.Semaphore(IN_FLIGHT)

        async def one(number: int) -> int:
            params = SamplingParams(max_tokens=RESPONSE_LENGTH, seed=number, num_probe_tokens=num_probe_tokens)
            async with places:
                found = await engine.generate(prompt(policy, number), params, lambda _: None)
            return len(found.token_ids)

        return sum(await asyncio.gather(*(one(salt * NUM_REQUESTS + number) for number in range(NUM_REQUESTS))))

    begin = perf_counter()
    return asyncio.run(run()) / (perf_counter() - begin)


def measure(engine: VLLMServerEngine, policy: PolicySource, repeats: int) -> dict[str, float]:
    """Return publication times and rates of a pool that is ready."""
    model = policy.build_model()
    publications = []
    for version in range(NUM_PUBLICATIONS):
        begin = perf_counter()
        engine.load_weights(model.named_parameters(), version)
        publications.append(perf_counter() - begin)
    rates: dict[int, list[float]] = {0: [], NUM_PROBE_TOKENS: []}
    for repeat in range(repeats + 1):
        for num_probe_tokens, found in rates.items():
            rate = generate(engine, policy, num_probe_tokens, repeat)
            if repeat:  # the first round warms up
                found.append(rate)
    whole, split = (statistics.median(found) for found in rates.values())
    return {
        "publication_s": statistics.median(publications),
        "one_request_tokens_per_s": whole,
        "with_probe_tokens_per_s": split,
        "with_probe_over_one_request": split / whole,
    }


def main() -> None:
    """Run the measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(describe_machine(), flush=True)
    torch.set_num_threads(1)
    policy = quickstart_policy()
    with tempfile.TemporaryDirectory() as name:
        begin = perf_counter()
        process, url = launch(policy, Path(name))
        engine = VLLMServerEngine(
            policy, endpoints=[url], max_model_len=MAX_MODEL_LEN, max_num_seqs=IN_FLIGHT, ready_timeout_s=240.0
        )
        try:
            asyncio.run(engine.generate(prompt(policy, 0), SamplingParams(max_tokens=8)))
            figures = {"start_s": perf_counter() - begin} | measure(engine, policy, args.repeats)
        finally:
            engine.close()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the workers are in the session of the server
            process.wait(timeout=30)
            time.sleep(0.1)
    for label, value in figures.items():
        print(f"{label:32s} {value:.3g}")
    print_result("server", figures, {})


if __name__ == "__main__":
    main()
