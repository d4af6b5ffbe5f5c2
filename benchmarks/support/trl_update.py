"""TRL's padded GRPO loss on given trajectories, for `benchmarks.tree_update --trl PYTHON`, which starts this file.

It runs in an environment of its own that has TRL, and therefore imports nothing of this library. The folder in
`sys.argv[1]` holds a model, a tokenizer and `rows.pt`. For every line on standard input it runs one forward and
backward pass and prints processor and wall seconds; at the end of the input it prints its peak memory and saves its
gradients as `gradients.pt`.
"""

import json
import sys
import warnings
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch


def memory_mb(name: str) -> float:
    """Return a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def make_trainer(folder: Path) -> Any:
    """Return a `GRPOTrainer` whose loss is GRPO's, averaged over tokens, without a KL penalty."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    settings = GRPOConfig(
        output_dir=str(folder / "trl"),
        loss_type="bnpo",
        beta=0.0,
        per_device_train_batch_size=8,
        num_generations=8,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": "w1"}] * 8),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )


def main() -> None:
    """Answer lines until there are no more."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    trainer = make_trainer(folder)
    inputs = torch.load(folder / "rows.pt")
    model = trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = memory_mb("VmRSS")
    print("ready", flush=True)
    for _ in sys.stdin:
        model.zero_grad()
        start, wall = process_time(), perf_counter()
        trainer.compute_loss(model, inputs).backward()
        print(json.dumps({"cpu_s": process_time() - start, "wall_s": perf_counter() - wall}), flush=True)
    torch.save({name: parameter.grad for name, parameter in model.named_parameters()}, folder / "gradients.pt")
    print(json.dumps({"peak_mb": round(memory_mb("VmHWM") - before)}), flush=True)


if __name__ == "__main__":
    main()
