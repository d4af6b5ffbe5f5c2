"""Iterations of this library on the trail task, for `benchmarks.step`, which starts this file.

The folder in `sys.argv[1]` holds a policy. Every line on standard input asks for one iteration, run by Lightning's
trainer as `python train.py` does it: publication of the weights, rollouts, old log-probs and optimiser steps.
"""

import json
import logging
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch

from aepo_lightning.app.build import Run, build_run
from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.policy.source import PretrainedPolicy
from benchmarks.support.policies import quickstart_config
from benchmarks.support.stopwatch import Stopwatch


class Gate(L.Callback):
    """Waits for a line before each iteration and answers after it."""

    def __init__(self, run: Run, stopwatch: Stopwatch) -> None:
        """Watch the parts of an iteration."""
        self._run = run
        self._stopwatch = stopwatch
        datamodule: Any = run.datamodule
        stopwatch.wrap(run.engine, "_step", "generation")
        stopwatch.wrap(run.module, "score", "old log-probs")
        stopwatch.wrap(datamodule, "publish_weights", "publication")
        stopwatch.wrap(datamodule, "_rollout", "parsing, tools")
        stopwatch.wrap(datamodule, "_collect", "rewards, batching")
        collect = datamodule._collect

        def collect_on_demand() -> None:
            line = sys.stdin.readline()
            if not line:
                raise SystemExit
            torch.set_num_threads(json.loads(line)["threads"])
            stopwatch.restart()
            collect()

        datamodule._collect = collect_on_demand

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Answer."""
        del trainer, pl_module
        figures = self._stopwatch.figures()
        print(json.dumps(figures | rollout_figures(self._run.datamodule.trees)), flush=True)


def rollout_figures(trees: list[RolloutTree]) -> dict[str, float]:
    """Return what was rolled out; tokens that trajectories share are sampled once, but counted in each of them."""
    paths = [path for tree in trees for path in tree.trajectories()]
    rewards = [reward for tree in trees for reward in tree.rewards]
    return {
        "trajectories": len(paths),
        "sampled_tokens": sum(tree.num_generated_tokens for tree in trees),
        "tokens": sum(len(path.token_ids) for path in paths),
        "tool_calls": sum(sum(a and not b for a, b in pairwise(path.is_sampled)) for path in paths),
        "correct": sum(reward >= 1.0 for reward in rewards) / len(rewards),
    }


def main() -> None:
    """Train until the input ends."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    cfg = quickstart_config(
        f"algorithm={settings['algorithm']}",
        "callbacks=none",
        "~callbacks.checkpoint",
        "~callbacks.progress_bar",
        "+data.show_progress=false",
        "+trainer.enable_progress_bar=false",
        "+trainer.enable_checkpointing=false",
        "+trainer.limit_val_batches=0",
        f"trainer.max_epochs={settings['iterations']}",
    )
    L.seed_everything(cfg.seed, verbose=False)
    run = build_run(cfg, PretrainedPolicy(name_or_path=str(folder / "policy")), folder / settings["algorithm"])
    run.trainer.callbacks.append(Gate(run, Stopwatch("update")))  # type: ignore[attr-defined]
    print("ready", flush=True)
    run.trainer.fit(run.module, datamodule=run.datamodule)


if __name__ == "__main__":
    main()
