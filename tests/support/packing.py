"""Branched trees, and updates on them, for tests of packed training."""

from random import Random

import torch

from aepo_lightning.contracts.question import Question, SegmentSource
from aepo_lightning.contracts.tree import RolloutTree
from tests.support.training import build_experience, built_module, flat, make_leaf, perturb, small_policy

PACKINGS = ("flat", "tree")


def branched_tree(random, question_id="q", num_leaves=6, vocab=20, longest=6):
    """A tree whose trajectories leave each other after the prompt, after tool results and after turns of the policy."""
    tree = RolloutTree(question=Question(question_id=question_id, messages=(), answers=()), global_budget=num_leaves)

    def add(parent, source):
        tokens = [random.randrange(3, vocab) for _ in range(random.randint(1, longest))]
        numbers = {}
        if source is SegmentSource.POLICY:
            numbers = {"logprobs": [-t / 10 for t in tokens], "entropies": [t / 100 for t in tokens]}
        return tree.add(parent, source, tokens, **numbers)

    add(None, SegmentSource.PROMPT)
    for index in range(num_leaves):
        segment = tree.segments[random.randrange(len(tree.segments))]
        for _ in range(random.randint(1, 3)):
            if segment.source is SegmentSource.POLICY:
                segment = add(segment.segment_id, SegmentSource.TOOL)
            segment = add(segment.segment_id, SegmentSource.POLICY)
        leaf = make_leaf(segment.segment_id, random.random(), index)
        tree.leaves.append(leaf)
    return tree


def branched_trees(num_trees=3, seed=0, **options):
    random = Random(seed)
    return [branched_tree(random, f"q{number}", **options) for number in range(num_trees)]


def grouped_policy(**fields):
    """Four query heads that share two key heads."""
    return small_policy(num_attention_heads=4, num_key_value_heads=2, **fields)


def to_double(network):
    """Compute everything in float64. Transformers' norms go through float32 whatever the weights are."""
    for module in network.double().modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, norm=module: (
                norm.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)
            )


def update(packing, trees, dtype=torch.float32, experience=None, policy=None, seed=1, **options):
    """Loss, gradients and token numbers of one optimiser step, in which ratios, reference and policy all differ."""
    module = built_module(policy=policy or grouped_policy(), **options)
    networks = [module.network, *module._reference]
    if dtype == torch.float64:
        for network in networks:
            to_double(network)
    perturb(module.network, seed=seed)
    settings = {"packing": packing} | (experience or {})
    (minibatch,) = build_experience(module, trees, **settings)
    perturb(module.network, seed=seed + 1)
    total, rows = 0.0, {}
    for batch in minibatch.micro_batches:
        loss, metrics = module.policy_loss(module.network, batch, minibatch)
        loss.backward()
        total += float(loss.detach())
        rows |= _rows(batch, module.score(batch))
    return {
        "loss": total,
        "metrics": metrics,
        "rows": rows,
        "gradients": flat(parameter.grad for parameter in module.network.parameters() if parameter.requires_grad),
        "num_micro_batches": len(minibatch.micro_batches),
        "num_tokens": [num_tokens(batch) for batch in minibatch.micro_batches],
    }


def num_tokens(batch):
    """Tokens that a micro-batch runs."""
    return batch.input_ids.numel() if batch.packed is None else len(batch.packed.input_ids)


def _rows(batch, scores):
    """(group, tokens) -> every number of the response tokens."""
    found = {}
    for row, length in enumerate(batch.lengths.tolist()):
        mask = batch.response_mask[row]
        numbers = [scores.logprobs, scores.entropies, batch.old_logprobs, batch.old_entropies, batch.advantages]
        numbers += [] if batch.ref_logprobs is None else [batch.ref_logprobs]
        key = (int(batch.group_index[row]), tuple(batch.input_ids[row, :length].tolist()))
        found[key] = torch.stack([values[row][mask].double() for values in numbers])
    return found
