"""Updates on branched trajectories: right-padded rows, rows without padding, and shared prefixes run once.

    python -m benchmarks.tree_update [--rounds 7] [--layers 2] [--trl PYTHON]

Every packing trains on the same trajectories: 8 of 600 to 800 tokens per question, branched in three levels so that a
given share of their tokens is shared, with the same policy: a Qwen3 of random weights, width 512, feed-forward width
1536, 8 heads of 64 over 4 key heads, 2 layers, a vocabulary of 4096, float32. One round is forward
and backward pass of one optimiser step in each packing, the order changing from round to round. Times are processor
seconds of one thread, which other work on the machine disturbs less than wall seconds do; ratios are medians over
rounds of the ratio within a round. `ideal` is the ratio of tokens, `efficiency` how much of it is reached. Peak memory
is that of a fresh process above what it had before its first step. `gradient_difference` is relative (L2) to padded.

With `--trl`, an interpreter that has TRL runs the loss of TRL's `GRPOTrainer` (padded) on the same trajectories.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter, process_time

import torch
from torch import Tensor

from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.policy.source import ScratchPolicy
from aepo_lightning.policy.tokenizers import build_word_tokenizer
from aepo_lightning.training.experience import ExperienceBuilder, ExperienceSettings
from aepo_lightning.training.module import AEPOModule
from aepo_lightning.training.presets import GRPO
from benchmarks.support.common import print_result
from benchmarks.support.shared_prefixes import PROMPT_LENGTH, VOCABULARY, make_trees

PACKINGS = ("padded", "flat", "tree")
SHARES = (0.0, 0.25, 0.5, 2 / 3, 0.75)
GOALS = {0.0: 1 / 1.03, 0.5: 0.9, 2 / 3: 0.85}
"""Least share of the ideal speed-up. Where nothing is shared, flat may be 3 % faster."""
BUDGET = 8192


def make_policy(layers: int) -> ScratchPolicy:
    """Return a Qwen3 whose attention and feed-forward layers take nearly all of the time."""
    architecture = {
        "model_type": "qwen3",
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "initializer_range": 0.05,
    }
    return ScratchPolicy(
        tokenizer=build_word_tokenizer([f"w{i}" for i in range(VOCABULARY)]), architecture=architecture
    )


class Update:
    """One packing's optimiser step on given trees."""

    def __init__(self, module: AEPOModule, packing: str, trees: list[RolloutTree]) -> None:
        """Build the micro-batches."""
        self.module = module
        builder = ExperienceBuilder(
            advantage_estimator=_Spread(),
            settings=ExperienceSettings(
                questions_per_step=len(trees),
                max_tokens_per_micro_batch=BUDGET,
                packing=packing,
                old_logprobs="sampler",
            ),
        )
        start = process_time()
        (self.minibatch,) = builder.build(trees, module.score)
        self.build_s = process_time() - start
        for batch in self.minibatch.micro_batches:
            # On-policy: every ratio is 1, whatever the packing.
            batch.old_logprobs = module.score(batch).logprobs

    def __call__(self) -> tuple[float, float]:
        """Run forward and backward pass and return processor and wall seconds."""
        network = self.module.network
        assert network is not None
        network.zero_grad()
        start, wall = process_time(), perf_counter()
        for batch in self.minibatch.micro_batches:
            loss, _ = self.module.policy_loss(network, batch, self.minibatch)
            loss.backward()
        return process_time() - start, perf_counter() - wall

    @property
    def gradients(self) -> Tensor:
        """Return every gradient of the last step."""
        assert self.module.network is not None
        return flat_gradients({name: p.grad for name, p in self.module.network.model.named_parameters()})

    @property
    def num_tokens(self) -> int:
        """Return how many tokens the backbone runs."""
        return sum(
            batch.input_ids.numel() if batch.packed is None else len(batch.packed.input_ids)
            for batch in self.minibatch.micro_batches
        )


class _Spread:
    """Advantages that differ between trajectories, also of a question that has one only."""

    def __call__(self, rewards: Tensor) -> Tensor:
        return rewards * 4 - 2


class TrlUpdate:
    """The same step by TRL, in a process of another interpreter."""

    def __init__(self, python: str, module: AEPOModule, trees: list[RolloutTree], folder: Path) -> None:
        """Save model, tokenizer and rows, and start the process."""
        assert module.network is not None
        module.network.model.save_pretrained(folder)
        module.policy.tokenizer.save_pretrained(folder)
        torch.save(trl_inputs(trees), folder / "rows.pt")
        self._folder = folder
        script = Path(__file__).parent / "support" / "trl_update.py"
        self._process = subprocess.Popen(
            [python, str(script), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answer(lambda line: line == "ready\n")

    def __call__(self) -> tuple[float, float]:
        """Run one step and return processor and wall seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        found = json.loads(self._answer(lambda line: "cpu_s" in line))
        return found["cpu_s"], found["wall_s"]

    def close(self) -> tuple[int, Tensor]:
        """End the process and return its peak memory in MB and its last gradients."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        found = json.loads(self._answer(lambda line: "peak_mb" in line))
        self._process.wait()
        return found["peak_mb"], flat_gradients(torch.load(self._folder / "gradients.pt"))

    def _answer(self, is_it: Callable[[str], bool]) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if is_it(line):
                return line
        raise RuntimeError("The interpreter of `--trl` ended; run benchmarks/support/trl_update.py with it to see why.")


def trl_inputs(trees: list[RolloutTree]) -> dict[str, Tensor]:
    """Return trajectories as TRL's trainer passes them to its loss: prompts, then right-padded completions."""
    paths = [path for tree in trees for path in tree.trajectories()]
    rewards = torch.tensor([reward for tree in trees for reward in tree.rewards])
    width = max(len(path.token_ids) for path in paths) - PROMPT_LENGTH

    def completions(rows: list[list[int]]) -> Tensor:
        return torch.tensor([row[PROMPT_LENGTH:] + [0] * (width + PROMPT_LENGTH - len(row)) for row in rows])

    prompts = torch.tensor([path.token_ids[:PROMPT_LENGTH] for path in paths])
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions([path.token_ids for path in paths]),
        "completion_mask": completions([[1] * len(path.token_ids) for path in paths]),
        "tool_mask": completions([[int(own) for own in path.is_sampled] for path in paths]),
        "advantages": _Spread()(rewards),
    }


def flat_gradients(gradients: Mapping[str, Tensor | None]) -> Tensor:
    """Return gradients as one vector, in the order of the names."""
    return torch.cat([found.flatten() for _, found in sorted(gradients.items()) if found is not None])


def make_module(layers: int) -> AEPOModule:
    """Return a module whose loss is GRPO's, averaged over tokens."""
    module = AEPOModule(make_policy(layers), GRPO(), optimizer=torch.optim.SGD, logprob_chunk_size=1024)
    module.configure_model()
    return module


def measure(share: float, arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Return the figures of one share of shared tokens."""
    trees, module = make_trees(share), make_module(arguments.layers)
    updates: dict[str, Update | TrlUpdate] = {packing: Update(module, packing, trees) for packing in PACKINGS}
    own = {name: update for name, update in updates.items() if isinstance(update, Update)}
    gradients = {}
    for name, update in own.items():
        update()
        gradients[name] = update.gradients
    if arguments.trl:
        updates["trl"] = TrlUpdate(arguments.trl, module, trees, folder)
        updates["trl"]()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in updates}
    for number in range(arguments.rounds):
        for name in sorted(updates, reverse=bool(number % 2)):
            times[name].append(updates[name]())
    peaks = {} if arguments.no_memory else peak_memory(share, arguments.layers)
    trl = updates.get("trl")
    if isinstance(trl, TrlUpdate):
        peaks["trl"], gradients["trl"] = trl.close()
    tokens = {name: update.num_tokens for name, update in own.items()}
    return {
        "shared": round(1 - tokens["tree"] / tokens["flat"], 4),
        "tokens": tokens,
        **time_figures(times, tokens["flat"] / tokens["tree"]),
        "build_ms": {name: round(1e3 * update.build_s, 1) for name, update in own.items()},
        "peak_mb": peaks,
        "gradient_difference": {
            name: float(f"{float((found - gradients['padded']).norm() / gradients['padded'].norm()):.1e}")
            for name, found in gradients.items()
        },
    }


def time_figures(times: Mapping[str, list[tuple[float, float]]], ideal: float) -> dict[str, object]:
    """Return median times and how much faster the tree is than each other packing."""
    faster = {
        name: round(statistics.median(o[0] / t[0] for o, t in zip(values, times["tree"], strict=True)), 3)
        for name, values in times.items()
        if name != "tree"
    }
    return {
        "cpu_s": {name: round(statistics.median(cpu for cpu, _ in values), 3) for name, values in times.items()},
        "wall_s": {name: round(statistics.median(wall for _, wall in values), 3) for name, values in times.items()},
        "tree_faster_than": faster,
        "ideal": round(ideal, 3),
        "efficiency": round(faster["flat"] / ideal, 3),
    }


def child(arguments: argparse.Namespace) -> None:
    """Print by how many MB one step raises the memory of this process at its peak."""
    update = Update(make_module(arguments.layers), arguments.child, make_trees(arguments.share))
    before = start_peak()
    update()
    print(json.dumps({"peak_mb": round(memory_mb("VmHWM") - before)}))


def start_peak() -> float:
    """Make the kernel forget the peak of this process, and return the memory that it has now, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory_mb("VmRSS")


def memory_mb(name: str) -> float:
    """Return a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def peak_memory(share: float, layers: int) -> dict[str, int]:
    """Return the peak of each packing, each in a process of its own."""
    found = {}
    for packing in PACKINGS:
        command = [sys.executable, "-m", "benchmarks.tree_update", "--child", packing, "--share", str(share)]
        output = subprocess.run([*command, "--layers", str(layers)], check=True, capture_output=True, text=True).stdout
        found[packing] = json.loads(output.splitlines()[-1])["peak_mb"]
    return found


def main() -> None:
    """Measure every share and print a line for each, then the closing line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--trl", help="an interpreter that has TRL")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, help="measure this share only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        child(arguments)
        return
    figures: dict[str, object] = {"load_before": os.getloadavg()}
    efficiency = {}
    for share in SHARES if arguments.share is None else (arguments.share,):
        with tempfile.TemporaryDirectory() as folder:
            found = measure(share, arguments, Path(folder))
        figures[f"{share:.0%}"], efficiency[share] = found, float(str(found["efficiency"]))
        print(f"{share:.0%}", json.dumps(found), flush=True)
    figures["load_after"] = os.getloadavg()
    goals = {
        f"efficiency at {share:.0%}": (efficiency[share], ">=", bound)
        for share, bound in GOALS.items()
        if share in efficiency
    }
    print_result("tree_update", figures, goals)


if __name__ == "__main__":
    main()
