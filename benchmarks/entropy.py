"""Estimators of a token's entropy: how far off each is, and what it costs to get out of vLLM.

    python -m benchmarks.entropy [--policy FOLDER] [--repeats 5]

Estimators: the 10 largest log-probs as in the released code of AEPO (not renormalised), the 20 largest, and the exact
entropy as this library's vLLM engine reports it. Bias is measured against float64 over the whole vocabulary,

- on tokens that the quickstart policy samples after its cold start (trained here unless `--policy` names its folder);
- on simulated logits for a vocabulary of 151,936: Zipf-like, `-a ln rank` plus normal noise of 0.5, with a in [5, 9]
  for calm positions (80 %) and in [1, 1.6] for bursts (20 %), so that most tokens are nearly certain and some are not.

Cost is tokens per second of the same vLLM with detokenisation off, 64 requests at once, also with a tiny model whose
vocabulary has 151,936 tokens; "none" asks for no log-probs at all. Rounds alternate; medians.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from aepo_lightning.branching import NeverBranch
from aepo_lightning.budgets import RootShare
from aepo_lightning.chat_formats.tags import TagFormat
from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.engines.sampling import sample_tokens
from aepo_lightning.engines.vllm import launch as vllm_launch
from aepo_lightning.engines.vllm.entropy import pack_entropies, unpack_entropy
from aepo_lightning.engines.vllm.sampler import draw_arguments, install
from aepo_lightning.ops.entropy import top_k_entropy
from aepo_lightning.policy.skeleton import meta_model
from aepo_lightning.policy.source import PretrainedPolicy, ScratchPolicy
from aepo_lightning.policy.tokenizers import build_word_tokenizer
from aepo_lightning.rewards import PaperReward
from aepo_lightning.rollout import RolloutParts, RolloutSampler, RolloutSettings
from aepo_lightning.tasks import TrailTask
from aepo_lightning.tools import DocumentSearch, ToolRuntime
from benchmarks.support.common import describe_machine, print_result

ROOT = Path(__file__).resolve().parent.parent
LARGE = 151_936
NUM_POSITIONS = 512
NUM_REQUESTS = 64
PROMPT_LENGTH = 24
NUM_TOKENS = {"quickstart": 48, "large": 8}
ESTIMATORS = ("none", "top_10", "top_20", "exact")


def cold_started(folder: Path) -> Path:
    """Train the quickstart policy on demonstrations and return where it lies."""
    command = [sys.executable, "train.py", f"run_dir={folder}", "trainer.max_epochs=1", "data.num_val_questions=8"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder / "coldstart"


def simulated_logits() -> Tensor:
    """Return logits of a large vocabulary with bursts of entropy; the docstring of the module says which."""
    generator = torch.Generator().manual_seed(0)
    is_burst = torch.rand(NUM_POSITIONS, generator=generator) < 0.2
    uniform = torch.rand(NUM_POSITIONS, generator=generator)
    slope = torch.where(is_burst, 1.0 + 0.6 * uniform, 5.0 + 4.0 * uniform)
    noise = 0.5 * torch.randn(NUM_POSITIONS, LARGE, generator=generator)
    return noise - slope[:, None] * torch.arange(1, LARGE + 1).log()


@torch.no_grad()
def policy_logits(policy: PolicySource) -> Tensor:
    """Return the logits behind the tokens that a policy samples in whole rollouts of its task."""
    task = TrailTask()
    parts = RolloutParts(
        engine=TransformersEngine(policy, max_num_seqs=64, max_model_len=512),
        tools=ToolRuntime(tools=(DocumentSearch(),)),
        reward=PaperReward(),
        chat_format=TagFormat(policy.tokenizer, ("search",)),
        allocator=RootShare(),
        branch_policy=NeverBranch(),
        settings=RolloutSettings(budget=1, max_response_tokens=384),
    )
    trees = RolloutSampler(parts).rollout([task.question("val", index) for index in range(64)], seed=0)
    model = policy.build_model()
    rows = []
    for tree in trees:
        segments = tree.path(tree.leaves[0].segment_id)
        tokens = [token for segment in segments for token in segment.token_ids]
        is_sampled = torch.tensor(
            [segment.source is SegmentSource.POLICY for segment in segments for _ in segment.token_ids]
        )
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, :-1]
        rows.append(logits[is_sampled[1:]])
    return torch.cat(rows)


def bias(logits: Tensor) -> dict[str, dict[str, float]]:
    """Return errors of each estimator over the rows, in nats and relative to the exact entropy."""
    exact: list[Tensor] = []
    estimates: dict[str, list[Tensor]] = {name: [] for name in ESTIMATORS[1:]}
    for row in torch.split(logits, 32):
        logprobs = row.double().log_softmax(-1)
        exact.append(torch.special.entr(logprobs.exp()).sum(-1))
        for count in (10, 20):
            top = logprobs.topk(count).values
            estimates[f"top_{count}"].append(torch.tensor([top_k_entropy(each) for each in top.tolist()]).double())
        reported = pack_entropies(drawn_entropies(row))
        estimates["exact"].append(torch.tensor([unpack_entropy(code) for code in reported.tolist()]).double())
    truth = torch.cat(exact)
    high = truth > truth.quantile(0.8)
    found = {}
    for name, parts in estimates.items():
        error = truth - torch.cat(parts)
        found[name] = {
            "mean_error_nats": error.mean().item(),
            "max_error_nats": error.abs().max().item(),
            "relative_error": (error.sum() / truth.sum()).item(),
            "relative_error_highest_fifth": (error[high].sum() / truth[high].sum()).item(),
        }
    found["truth"] = {"mean_entropy_nats": truth.mean().item(), "max_entropy_nats": truth.max().item()}
    return found


def drawn_entropies(logits: Tensor) -> Tensor:
    """Return the float32 entropies of the sampler that both engines draw with."""
    ones = torch.ones(len(logits))
    return sample_tokens(logits, ones, ones, torch.zeros(len(logits), dtype=torch.long), 0.5 * ones.double()).entropies


def large_policy() -> PolicySource:
    """Return a tiny random model with a large vocabulary; its tokenizer is not used."""
    architecture = {
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    words = [f"w{index}" for index in range(LARGE)]
    return ScratchPolicy(tokenizer=build_word_tokenizer(words), architecture=architecture)


def start(policy: PolicySource) -> Any:
    """Return a vLLM with the policy's weights, without any engine of this library around it."""
    skeleton = meta_model(policy.config)
    settings = {"max_model_len": 256, "max_num_seqs": 64, "dtype": "float32", "kv_cache_memory_bytes": 64 << 20}
    llm = vllm_launch.launch(skeleton, settings)
    vllm_launch.load(llm, policy.build_model().named_parameters())
    return llm


def tokens_per_s(llm: Any, estimator: str, num_tokens: int, vocab_size: int) -> float:
    """Return the throughput of one round of requests under one estimator."""
    vllm = import_module("vllm")
    llm.reset_prefix_cache()
    vllm_launch.use_own_sampler(llm)
    num_top = {"none": None, "top_10": 10, "top_20": 20, "exact": 0}[estimator]
    if estimator == "exact":
        install(vllm_launch.worker(llm).model_runner)
    requests, params = [], []
    for salt in range(NUM_REQUESTS):
        ids = [(7 * index + 13 * salt) % vocab_size for index in range(PROMPT_LENGTH)]
        requests.append({"prompt_token_ids": ids})
        drawing: dict[str, Any] = {"seed": salt}
        if estimator == "exact":
            drawing = {"extra_args": draw_arguments(SamplingParams(max_tokens=num_tokens, seed=salt))}
        common: dict[str, Any] = {"max_tokens": num_tokens, "ignore_eos": True, "detokenize": False}
        params.append(vllm.SamplingParams(logprobs=num_top, flat_logprobs=True, **common, **drawing))
    begin = perf_counter()
    llm.generate(requests, params, use_tqdm=False)
    return NUM_REQUESTS * num_tokens / (perf_counter() - begin)


def cost(policy: PolicySource, num_tokens: int, repeats: int) -> dict[str, int]:
    """Return the median throughput under each estimator."""
    llm = start(policy)
    rounds: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    for repeat in range(repeats + 1):
        for name in ESTIMATORS:
            rate = tokens_per_s(llm, name, num_tokens, policy.config.vocab_size)
            if repeat:  # the first round warms up
                rounds[name].append(rate)
    vllm_launch.shut_down(llm)
    return {name: round(statistics.median(rates)) for name, rates in rounds.items()}


def print_table(title: str, errors: Mapping[str, Mapping[str, float]], rates: Mapping[str, int]) -> None:
    """Print bias and cost of one case."""
    print(f"{title}: mean entropy {errors['truth']['mean_entropy_nats']:.3f} nats")
    for name in ESTIMATORS:
        line = f"  {name:7s} {rates[name]:6d} tokens/s ({rates[name] / rates['none']:.2f} of none)"
        if name in errors:
            each = errors[name]
            line += (
                f"  mean error {each['mean_error_nats']:.2e}, max {each['max_error_nats']:.2e} nats, "
                f"{100 * each['relative_error']:.2g} %, {100 * each['relative_error_highest_fifth']:.2g} % where high"
            )
        print(line, flush=True)


def main() -> None:
    """Run the measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, default=None)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(describe_machine(), flush=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.policy or cold_started(Path(scratch) / "run")
        policies = {"quickstart": PretrainedPolicy(name_or_path=str(folder)), "large": large_policy()}
        errors = {"quickstart": bias(policy_logits(policies["quickstart"])), "large": bias(simulated_logits())}
        rates = {name: cost(policy, NUM_TOKENS[name], arguments.repeats) for name, policy in policies.items()}
    for name in policies:
        print_table(name, errors[name], rates[name])
    exact = max(errors[name]["exact"]["max_error_nats"] for name in policies)
    figures = {"bias": errors, "tokens_per_s": rates}
    print_result("entropy", figures, {"exact_max_error_nats": (exact, "<=", 1e-3)})


if __name__ == "__main__":
    main()
