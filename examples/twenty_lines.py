"""AEPO in twenty lines: a task, an engine, a tool, a reward, a bare trainer.

    python examples/twenty_lines.py

The policy is made from nothing, so that this runs anywhere. For a language model take
`PretrainedPolicy("Qwen/Qwen3-4B")`, `JsonlQuestions("train.jsonl")` and `VLLMEngine(policy, max_model_len=4096)`.
"""

import lightning as L

from aepo_lightning import (
    AEPO,
    AEPOModule,
    DocumentSearch,
    RolloutDataModule,
    ScratchPolicy,
    TrailTask,
    TransformersEngine,
    build_word_tokenizer,
)
from aepo_lightning.callbacks import EntropyMonitor

TINY = {"model_type": "qwen3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
TINY |= {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}


def correct(sample) -> float:
    return float(sample.question.answers[0] in sample.response_text)


task = TrailTask(num_val_questions=0)
policy = ScratchPolicy(tokenizer=build_word_tokenizer(task.words), architecture=TINY)
algorithm = AEPO(budget=8)
engine = TransformersEngine(policy, max_model_len=64)
data = RolloutDataModule(task, engine, algorithm, tools=[DocumentSearch()], reward=correct)
module = AEPOModule(policy, algorithm, lr=1e-3)
trainer = L.Trainer(max_epochs=3, accelerator="cpu", callbacks=[EntropyMonitor()])
trainer.fit(module, data)
print(f"iterations {data.iteration}, steps {trainer.global_step}, reward {data.metrics['rollout/reward']:.2f}")
