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
    """A row of the table in docs/models.md."""

    fields: dict[str, Any] = field(default_factory=dict)
    """What the tiny model has beside the sizes of `tiny_policy`."""
    head: str = "matrix"
    trainer: str = EXACT
    packing: str = EXACT
    engine: str = EXACT


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
        network = PolicyNetwork(policy.build_model())
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


def engine(policy):
    """Verdict: exact, or the message of the refusal."""
    try:
        built = TransformersEngine(policy, max_num_seqs=4, max_model_len=48)
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
