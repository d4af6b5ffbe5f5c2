"""One part of an algorithm swapped: AEPO as published against AEPO with CISPO's objective, from the same weights.

    python examples/swap_objective.py

Everything else is the same: rollouts, advantages, random numbers. So is therefore the first iteration.
"""

import lightning as L

from aepo_lightning import (
    AEPO,
    AEPOModule,
    Algorithm,
    Cispo,
    DocumentSearch,
    RolloutDataModule,
    SamplingSettings,
    ScratchPolicy,
    TrailTask,
    TransformersEngine,
    build_word_tokenizer,
)

TINY = {"model_type": "qwen3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
TINY |= {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}


def says_go(sample) -> float:
    """Return the share of words that are `go`: a reward that a policy from nothing can find."""
    words = sample.response_text.split()
    return words.count("go") / max(1, len(words))


class Curve(L.Callback):
    def __init__(self) -> None:
        self.rewards: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.rewards.append(trainer.datamodule.metrics["rollout/reward"])


def rewards(algorithm: Algorithm) -> list[float]:
    task, curve = TrailTask(num_val_questions=0), Curve()
    policy = ScratchPolicy(tokenizer=build_word_tokenizer(task.words), architecture=TINY)
    data = RolloutDataModule(
        task,
        TransformersEngine(policy, max_model_len=64),
        algorithm,
        tools=[DocumentSearch()],
        reward=says_go,
        sampling=SamplingSettings(max_response_tokens=16),
    )
    trainer = L.Trainer(max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[curve])
    trainer.fit(AEPOModule(policy, algorithm, lr=5e-3), data)
    return curve.rewards


for name, algorithm in (("EBPO ", AEPO()), ("CISPO", AEPO(objective=Cispo()))):
    print(name, "reward by iteration:", *(f"{value:.3f}" for value in rewards(algorithm)))
