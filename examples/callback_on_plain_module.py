"""A callback of this library on a module that has nothing to do with rollouts: a classifier, its entropy drawn.

    python examples/callback_on_plain_module.py [PICTURE.png]

`EntropyMonitor` asks the datamodule or the module for `metrics`, and the trainer for `train/entropy`, nothing else.
"""

import sys

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from aepo_lightning.callbacks import EntropyMonitor


class Classifier(L.LightningModule):
    """Says in which quadrant a point lies."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
        self.metrics: dict[str, float] = {}  # what `EntropyMonitor` reads when an epoch starts

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        points, quadrants = batch
        log_p = self.layers(points).log_softmax(-1)
        accuracy = (log_p.argmax(-1) == quadrants).float().mean()
        self.log("train/entropy", -(log_p.exp() * log_p).sum(-1).mean())
        self.metrics["rollout/reward"] = float(accuracy)
        return torch.nn.functional.nll_loss(log_p, quadrants)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


L.seed_everything(0, verbose=False)
points = torch.randn(1024, 2)
quadrants = (points[:, 0] > 0).long() + 2 * (points[:, 1] > 0).long()
loader = DataLoader(TensorDataset(points, quadrants), batch_size=128, shuffle=True)
monitor = EntropyMonitor(output_path=sys.argv[1] if len(sys.argv) > 1 else "quadrants.png")
trainer = L.Trainer(max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[monitor])
trainer.fit(Classifier(), loader)
first, *_, last = (value for _, value in monitor.curves["train/entropy"])
print(f"entropy {first:.2f} -> {last:.2f} nats, drawn to {monitor.path(trainer)}")
