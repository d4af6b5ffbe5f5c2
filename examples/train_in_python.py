"""The main job built from parts, without Hydra, with one part swapped: GPPO's objective instead of EBPO's.

    python examples/train_in_python.py [--iterations 40]

Every part takes plain arguments and satisfies a small Protocol (`aepo_lightning/contracts/`), so anything that has
the right methods can stand in its place.
"""

import argparse
from functools import partial
from pathlib import Path

import lightning as L
import torch

from aepo_lightning.advantages import EntropyShaping, GroupZScore
from aepo_lightning.branching import EntropyBalanced, NeverBranch
from aepo_lightning.budgets import PreMonitoring, RootShare
from aepo_lightning.chat_formats.tags import TagFormat
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.objectives import ClippedSurrogate
from aepo_lightning.policy.publishing.check import PublicationCheck
from aepo_lightning.policy.source import PretrainedPolicy, ScratchPolicy
from aepo_lightning.policy.tokenizers import build_word_tokenizer
from aepo_lightning.rewards import PaperReward
from aepo_lightning.rollout import RolloutParts, RolloutSampler, RolloutSettings
from aepo_lightning.tasks import TrailTask
from aepo_lightning.tools import DocumentSearch, ToolRuntime
from aepo_lightning.training.coldstart import ColdStartModule, DemonstrationDataModule
from aepo_lightning.training.datamodule import RolloutDataModule
from aepo_lightning.training.experience import ExperienceBuilder
from aepo_lightning.training.module import AEPOModule

ARCHITECTURE = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 832,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def cold_start(task: TrailTask, folder: Path, steps: int) -> PretrainedPolicy:
    """Train a fresh policy on demonstrations and save it."""
    policy = ScratchPolicy(tokenizer=build_word_tokenizer(task.words), architecture=ARCHITECTURE)
    module = ColdStartModule(policy, partial(torch.optim.AdamW, lr=3e-3))
    data = DemonstrationDataModule(task, TagFormat(policy.tokenizer, ["search"]), policy.tokenizer)
    trainer = L.Trainer(accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False)
    trainer.fit(module, datamodule=data)
    module.network.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return PretrainedPolicy(name_or_path=str(folder))


def build_samplers(policy: PretrainedPolicy) -> tuple[RolloutSampler, RolloutSampler]:
    """Return the branching sampler of training and the plain one of evaluation, on one engine."""
    tools = ToolRuntime(tools=[DocumentSearch()])
    common = {
        "engine": TransformersEngine(policy, max_num_seqs=512),
        "tools": tools,
        "reward": PaperReward(),
        "chat_format": TagFormat(policy.tokenizer, tools.tool_names),
    }
    training = RolloutParts(
        **common,
        allocator=PreMonitoring(beta=10.0),
        branch_policy=EntropyBalanced(gamma=4.0),
        settings=RolloutSettings(budget=8, max_response_tokens=96),
    )
    evaluation = RolloutParts(
        **common,
        allocator=RootShare(),
        branch_policy=NeverBranch(),
        settings=RolloutSettings(budget=4, max_response_tokens=96),
    )
    return RolloutSampler(training, 512), RolloutSampler(evaluation, 512)


def main() -> None:
    """Run cold start, training and evaluation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--cold-start-steps", type=int, default=650)
    parser.add_argument("--folder", type=Path, default=Path("runs/train_in_python"))
    args = parser.parse_args()
    L.seed_everything(0)
    task = TrailTask(demonstration_quality=0.6, num_flawless_demonstrations=25_600)
    policy = cold_start(task, args.folder / "coldstart", args.cold_start_steps)
    sampler, evaluation_sampler = build_samplers(policy)
    experience = ExperienceBuilder(advantage_estimator=GroupZScore(), shaping=EntropyShaping(), questions_per_step=8)
    data = RolloutDataModule(
        task,
        sampler,
        evaluation_sampler,
        experience,
        questions_per_iteration=32,
        publication_check=PublicationCheck(),
    )
    # The swap: both clipped sides keep their gradient. EBPO is ClippedSurrogate(preserve_high=1.0).
    objective = ClippedSurrogate(preserve_low=1.0, preserve_high=1.0)
    module = AEPOModule(policy, objective, partial(torch.optim.AdamW, lr=5e-4, weight_decay=0.0))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=args.iterations,
        default_root_dir=args.folder,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        inference_mode=False,
        check_val_every_n_epoch=10,
        log_every_n_steps=1,
    )
    trainer.validate(module, datamodule=data)
    trainer.fit(module, datamodule=data)
    trainer.validate(module, datamodule=data)


if __name__ == "__main__":
    main()
