"""A hand-worked model and a run of it, for the tests of plans."""

from dataclasses import replace

from aepo_lightning.app.plan.input import PlanInput

# hidden 64, 2 layers, 4 query heads and 2 key-value heads of 24, MLP 192, vocabulary 256, untied.
SMALL = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "intermediate_size": 192,
    "vocab_size": 256,
    "tie_word_embeddings": False,
}
# One layer: q 64*96 = 6144, k and v 2 * 64*48 = 6144, o 96*64 = 6144, q and k norms 2*24 = 48,
#            MLP 3 * 64*192 = 36864, two norms 128; together 55472.
LAYER = 55_472
# Outside the layers: embedding 256*64 = 16384, head 16384, final norm 64; together 32832.
ROOT = 32_832
# 2 * 55472 + 32832
TOTAL = 143_776
# Saved by one layer per token: norms 2 * (8*64 + 4) = 1032; attention 4*96 + 4*48 + 4*4 = 592;
#                               q and k norms 6 * (96 + 48) + 4 * (4 + 2) = 888; MLP 8*192 = 1536; together 4048.
SAVED = 4_048


def make_settings(**changes):
    settings = PlanInput(
        architecture=SMALL,
        num_gpus=4,
        num_iterations=10,
        questions_per_iteration=6,
        group_size=8,
        questions_per_step=2,
        max_prompt_tokens=100,
        max_response_tokens=400,
        micro_batch_tokens=1200,
        gpu_memory_gib=1.0,
        logprob_chunk_tokens=32,
        engine_memory_fraction=0.5,
        engine_workspace_gib=0.25,
        overhead_gib=0.125,
    )
    return replace(settings, **changes)
