"""Train a tool-using agent: `python train.py`, `python train.py +experiment=aepo_qwen3_14b plan=true`."""

from omegaconf import DictConfig

from aepo_lightning.app import stages
from aepo_lightning.app.build import build_run
from aepo_lightning.app.command import command
from aepo_lightning.app.plan import print_plan


@command  # composes conf/train.yaml with the words of the command line
def train(cfg: DictConfig) -> None:
    """Learn from demonstrations, then from rollouts; measure on held-out questions before and after."""
    if cfg.plan:
        print_plan(cfg)
        return

    with stages.open_run(cfg) as record:  # the folder, locked; the seed; the checkpoint that `ckpt_path` names
        policy = stages.cold_start(record)  # supervised; a pretrained policy comes as it is
        if stages.ends_with_cold_start(record):
            return

        run = build_run(record.cfg, policy, record.folder)  # engine, RolloutDataModule, AEPOModule, Lightning's Trainer
        stages.evaluate_before(record, run)
        stages.fit(record, run)  # run.trainer.fit(run.module, datamodule=run.datamodule)
        stages.evaluate_after(record, run)

        stages.export(record, run, policy)  # a Hugging Face folder, report.json, the closing table


if __name__ == "__main__":
    train()
