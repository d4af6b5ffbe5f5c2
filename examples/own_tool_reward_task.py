"""Tool, reward and task of your own: two functions and a list of dicts.

    python examples/own_tool_reward_task.py

The policy has one token per byte and is made from nothing: it shows that the parts fit, not that it learns.
"""

import lightning as L

from aepo_lightning import (
    GRPO,
    AEPOModule,
    RewardInput,
    RewardOutput,
    RolloutDataModule,
    SamplingSettings,
    ScratchPolicy,
    TransformersEngine,
    build_byte_tokenizer,
    tool,
)

TINY = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}

questions = [{"question": f"What is {a} times 7?", "answer": 7 * a, "a": a} for a in range(40)]


@tool
async def multiply(a: float, b: float) -> str:
    """Multiply two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return str(a * b)


def correct_and_short(sample: RewardInput) -> RewardOutput:
    """Score the answer; the other fields of a row, such as `a`, are in `sample.question.metadata`."""
    is_correct = sample.question.answers[0] in sample.response_text
    brevity = 1 / (1 + len(sample.response_text))
    return RewardOutput(reward=is_correct + brevity, is_correct=is_correct, is_well_formed=True, reason="brevity")


policy = ScratchPolicy(tokenizer=build_byte_tokenizer(), architecture=TINY)
algorithm = GRPO(budget=4)
data = RolloutDataModule(
    questions,
    TransformersEngine(policy, max_model_len=96),
    algorithm,
    tools=[multiply],
    reward=correct_and_short,
    sampling=SamplingSettings(max_response_tokens=32),
)
trainer = L.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(AEPOModule(policy, algorithm, lr=1e-3), data)
for leaf in data.trees[0].leaves:
    print(f"{leaf.reward.reward:.3f} {data.decode(data.trees[0].path(leaf.segment_id)[-1].token_ids)!r}")
