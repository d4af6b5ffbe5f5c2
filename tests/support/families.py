"""Tiny models of many families, and what trainer, packing and embedded engine make of each."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import torch

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.errors import ConfigError, EngineError, TrainingError
from aepo_lightning.ops.tree_packing import pack_rows
from aepo_lightning.policy.network import PolicyNetwork
from tests.support.builders import reference_scores, tiny_policy
from tests.support.training import flat, relative_l2

ROWS = ([5, 9, 17, 30, 31, 8, 99, 120], [5, 9, 17, 200, 3], [11, 12, 13, 14, 15])
TEMPERATURE = 0.7
EXACT = "exact"
# Two float32 computations of the same sums in another order, through experts and state spaces.
CLOSE = 1e-4


@dataclass(frozen=True)
class Family:
    """A row of the table in docs/models.md: verdicts are `exact`, or why it is refused."""

    fields: dict[str, Any] = field(default_factory=dict)
    """What the tiny model has beside the sizes of `tiny_policy`."""
    head: str = "matrix"
    trainer: str = EXACT
    packing: str = EXACT
    engine: str = EXACT


WINDOW = {"sliding_window": 64}
HEADS = {"head_dim": 8}
MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHARED = EXPERTS | {
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
SSM = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
DELTA = HEADS | {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
CAPS = HEADS | WINDOW | {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 2.0}


def other_layers(reason, **options):
    return Family(packing=reason, engine=reason, **options)


def refused(reason, **fields):
    return Family(fields=fields, head="another", trainer=reason, packing=reason, engine=reason)


FAMILIES = {
    "apertus": Family(),
    "bamba": other_layers("state spaces", fields=SSM),
    "bloom": refused("no `model`"),
    "cohere": Family({"logit_scale": 0.3}, head="scaled"),
    "cohere2": Family({"logit_scale": 0.3} | WINDOW, head="scaled"),
    "deepseek_v3": other_layers("latent attention", fields=MLA | SHARED),
    "ernie4_5": Family(HEADS),
    "exaone4": Family(WINDOW),
    "falcon": refused("no `model`"),
    "falcon_h1": other_layers(
        "state spaces beside attention", fields=SSM | {"mamba_d_ssm": 64, "lm_head_multiplier": 0.1}, head="scaled"
    ),
    "gemma": Family(HEADS),
    "gemma2": other_layers("capped attention", fields=CAPS, head="capped"),
    "gemma3_text": Family(HEADS | WINDOW),
    "glm": Family(HEADS),
    "glm4": Family(HEADS),
    "glm4_moe": Family(HEADS | SHARED),
    "gpt2": refused("no `model`", n_embd=32, n_layer=1, n_head=2),
    "gpt_neox": refused("no `model`"),
    "gpt_oss": other_layers("attention sinks", fields=HEADS | WINDOW | {"num_local_experts": 4}),
    "granite": Family({"logits_scaling": 13.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5}, head="scaled"),
    "granitemoe": Family({"logits_scaling": 13.0, "num_local_experts": 4}, head="scaled"),
    "granitemoehybrid": other_layers(
        "state spaces",
        fields=SSM
        | {"logits_scaling": 13.0, "num_local_experts": 4, "shared_intermediate_size": 16}
        | {"layer_types": ["mamba", "attention"]},
        head="scaled",
    ),
    "hrm_text": Family({"initializer_range": 0.1}, engine="a cache of its own"),
    "hunyuan_v1_dense": Family(HEADS),
    "hyperclovax": Family({"logits_scaling": 0.25}, head="scaled"),
    "jamba": other_layers("state spaces", fields={"mamba_d_state": 8, "num_experts": 4}),
    "lfm2": other_layers("convolutions", fields={"layer_types": ["conv", "full_attention"]}),
    "llama": Family(),
    "llama4_text": Family(HEADS | {"num_local_experts": 2, "intermediate_size_mlp": 64}, engine="chunked attention"),
    "mamba": refused("no `model`"),
    "minicpm3": other_layers("latent attention", fields=MLA, head="scaled"),
    "minimax": other_layers("linear attention", fields=HEADS | {"num_local_experts": 4}),
    "mistral": Family(WINDOW),
    "mixtral": Family({"num_local_experts": 4}),
    "modernbert-decoder": refused("layers in the head"),
    "nanochat": Family({"final_logit_softcapping": 2.0}, head="capped"),
    "nemotron": Family(packing="attention of its own"),
    "olmo": Family(),
    "olmo2": Family(),
    "olmo3": Family(WINDOW),
    "olmoe": Family({"num_experts": 4, "num_experts_per_tok": 2}),
    "opt": refused("layers beside the backbone", ffn_dim=64, word_embed_proj_dim=32),
    "persimmon": Family(engine="undeclared heads"),
    "phi": Family(head="biased"),
    "phi3": Family(),
    "phimoe": Family({"num_local_experts": 4, "lm_head_bias": True}, head="biased"),
    "qwen2": Family(),
    "qwen2_moe": Family(EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 16}),
    "qwen3": Family(),
    "qwen3_5_text": other_layers("linear attention", fields=DELTA),
    "qwen3_moe": Family(HEADS | EXPERTS | {"num_experts": 4}),
    "qwen3_next": other_layers(
        "linear attention", fields=DELTA | EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 16}
    ),
    "recurrent_gemma": other_layers(
        "recurrent layers",
        fields=HEADS | {"lru_width": 32, "logits_soft_cap": 2.0, "num_hidden_layers": 3, "attention_window_size": 64},
        head="capped",
    ),
    "seed_oss": Family(HEADS | {"residual_dropout": 0.5, "attention_dropout": 0.5}),
    "smollm3": Family(),
    "stablelm": Family(packing="attention of its own"),
    "starcoder2": Family(),
    "vaultgemma": other_layers("capped attention", fields=CAPS, head="capped"),
}
REASONS = {
    "a cache of its own": "must serve the model, but .* fails on them",
    "attention of its own": "layers must attend through transformers' attention interface",
    "attention sinks": "must not need `s_aux`|must be 'sdpa' in this engine",
    "capped attention": "must not need `softcap`|`attn_logit_softcapping` must be None",
    "chunked attention": r"must use full attention, but got \['chunked_attention'\]",
    "convolutions": "layers must attend through|must use full attention, but got .*conv",
    "latent attention": "must have one size|must serve the model, but .*shape mismatch",
    "layers beside the backbone": "computed from the last hidden states by the head alone, but OPTForCausalLM fails",
    "layers in the head": "`lm_head` must be a linear layer",
    "linear attention": "layers must attend through|must use full attention, but got .*linear_attention",
    "no `model`": "must have a `model` backbone and an `lm_head`",
    "recurrent layers": "layers must attend through|slots must be those of a plain pass, but .* differ by",
    "state spaces": "layers must attend through|must use full attention, but got .*linear_attention",
    "state spaces beside attention": r"must be those of padded rows, but .* differ by|must use full .*'hybrid'",
    "undeclared heads": "must serve the model, but .*shape mismatch",
}
"""What stands in the message of each refusal."""


def build_policy(name, family):
    """A policy whose biases, those of the head among them, are not zero."""
    policy = tiny_policy(model_type=name, **family.fields)
    build = policy.build_model

    def build_model():
        model = build()
        generator = torch.Generator().manual_seed(4)
        for each, parameter in model.named_parameters():
            if each.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.5, generator=generator)
        return model.eval()

    policy.build_model = build_model
    return policy


def padded(rows=ROWS):
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, lengths, torch.arange(1, width) < lengths[:, None]


def exact_model(policy):
    """The model as transformers computes it where nothing is left out, which `sdpa` does with caps of attention."""
    model = policy.build_model()
    if getattr(model.config, "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")
    return model


def by_definition(model):
    """Log-probs and entropies from the model's own logits, row by row without padding, and gradients."""
    logprobs, entropies = [], []
    for row in ROWS:
        logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[0, :-1]
        log_p = torch.log_softmax(logits.double() / TEMPERATURE, -1)
        logprobs.append(log_p[range(len(row) - 1), row[1:]])
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    return compare_by(model, torch.cat(logprobs).float(), torch.cat(entropies).float())


def by_network(network, packed=None):
    ids, lengths, mask = padded()
    packed = pack_rows(ids, lengths, mask) if packed else None
    scores = network(ids, mask, TEMPERATURE, "grad", packed=packed)
    return compare_by(network, scores.logprobs[mask], scores.entropies[mask])


def compare_by(module, logprobs, entropies):
    module.zero_grad()
    weights = torch.linspace(-1, 1, len(logprobs))
    (logprobs * weights + entropies * weights.flip(0)).sum().backward()
    grads = flat(p.grad if p.grad is not None else torch.zeros_like(p) for p in module.parameters())
    return logprobs.detach(), entropies.detach(), grads


def check_close(found, expected):
    torch.testing.assert_close(found[:2], expected[:2], atol=CLOSE, rtol=CLOSE)
    assert relative_l2(found[2], expected[2]) < 1e-3


def trainer_and_packing(policy):
    """Verdicts: exact, or the message of the refusal."""
    try:
        network = PolicyNetwork(policy.build_model()).train()
    except ConfigError as error:
        return str(error), str(error)
    expected = by_definition(exact_model(policy))
    check_close(by_network(network), expected)
    try:
        found = by_network(network, packed=True)
    except TrainingError as error:
        return EXACT, str(error)
    check_close(found, expected)
    return EXACT, EXACT


def engine(policy, build=TransformersEngine):
    """Verdict: exact, or the message of the refusal."""
    try:
        built = build(policy, max_num_seqs=4, max_model_len=48)
    except EngineError as error:
        return str(error)

    async def sample(prompts):
        params = [SamplingParams(max_tokens=5, temperature=TEMPERATURE, seed=i) for i in range(len(prompts))]
        return await asyncio.gather(*map(built.generate, prompts, params))

    model = exact_model(policy)
    for _ in range(2):  # the second time from cached prefixes
        for row, generation in zip(ROWS, asyncio.run(sample(ROWS)), strict=True):
            expected = reference_scores(model, [*row, *generation.token_ids], len(row), TEMPERATURE)
            found = torch.tensor(generation.logprobs), torch.tensor(generation.entropies)
            torch.testing.assert_close(found, tuple(map(torch.tensor, expected)), atol=CLOSE, rtol=CLOSE)
    return EXACT
