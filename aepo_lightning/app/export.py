"""The command `aepo-export`: turn a checkpoint into a Hugging Face folder that transformers and vLLM load.

    aepo-export RUN_FOLDER_OR_CHECKPOINT TARGET [--adapter merged|separate] [--dtype bfloat16] [--overwrite]

A policy that was trained with an adapter comes out with the adapter merged into its weights, or as the adapter alone
in peft's format. Weights are read, converted and written one after another: no model is built.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from aepo_lightning.app.build import find_modules_here
from aepo_lightning.app.command import guarded_command, quieten_libraries, speak_utf8
from aepo_lightning.app.saved_run import SavedPolicy, find_checkpoint, first_policy, load_config, saved_adapter
from aepo_lightning.app.targets import add_allow
from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.hf_folder import FolderWriter, base_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What was written."""

    target: Path
    checkpoint: Path
    global_step: int
    """Optimiser steps that the weights have seen."""


def export(
    source: Path,
    target: Path,
    *,
    adapter: Literal["merged", "separate"] = "merged",
    dtype: str | None = None,
    overwrite: bool = False,
    allowed: Sequence[str] = (),
) -> Export:
    """Write the policy of a checkpoint as a Hugging Face folder.

    Args:
        source: A checkpoint, or the folder of a run, of which the newest checkpoint is taken.
        target: The folder to write.
        adapter: What becomes of an adapter that was trained.
        dtype: Precision to write, such as `bfloat16`. None keeps that of the checkpoint.
        overwrite: Also replace a folder that is not an export.
        allowed: What the configuration of the run may call beside the parts of this library.

    Raises:
        ConfigError: If there is no such checkpoint, or the settings do not fit it; if the configuration would call what
            is not allowed.
        DataError: If the checkpoint is damaged or of another model, or the target cannot be written.
    """
    precision = None if dtype is None else _precision(dtype)
    checkpoint, folder = find_checkpoint(source)
    cfg = load_config(folder, allowed, ("model", "module.adapter"))
    policy = first_policy(cfg, folder)
    writer = FolderWriter(target=target, source=policy, overwrite=overwrite)
    lora = saved_adapter(cfg)
    saved = SavedPolicy.open(checkpoint, lora, policy)
    if adapter == "merged":
        writer.write_model(saved.weights(), precision)
    elif lora is not None:
        writer.write_adapter(lora, saved.updates(), base_name(policy), precision)
    else:
        raise ConfigError("`--adapter separate` needs a run with an adapter; this one trained all weights. Drop it.")
    return Export(target=target, checkpoint=checkpoint, global_step=saved.summary.global_step)


def _precision(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"`--dtype` must name a floating-point dtype, but got {name!r}. Use bfloat16 or float32.")
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a checkpoint, or the folder of a run")
    parser.add_argument("target", type=Path, help="the folder to write")
    parser.add_argument(
        "--adapter", choices=("merged", "separate"), default="merged", help="what becomes of an adapter; default merged"
    )
    parser.add_argument("--dtype", help="precision to write, such as bfloat16; default that of the checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="also replace a folder that is not an export")
    add_allow(parser)
    speak_utf8()
    args = parser.parse_args()
    find_modules_here()
    quieten_libraries()
    with guarded_command("The target is as it was, or whole."):
        done = export(
            args.source,
            args.target,
            adapter=args.adapter,
            dtype=args.dtype,
            overwrite=args.overwrite,
            allowed=args.allow,
        )
    message = f"{done.target}: the policy of {done.checkpoint} after {done.global_step} optimiser steps"
    Console().print(message, soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
