"""The sampler without a trainer: one question, a budget of six trajectories, the tree that comes out.

python examples/sampler_alone.py
"""

from aepo_lightning import (
    AEPO,
    DocumentSearch,
    PaperReward,
    RolloutParts,
    RolloutSampler,
    RolloutTree,
    SamplingSettings,
    ScratchPolicy,
    TagFormat,
    ToolRuntime,
    TrailTask,
    TransformersEngine,
    build_word_tokenizer,
)

TINY = {"model_type": "qwen3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
TINY |= {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}

task = TrailTask()
policy = ScratchPolicy(tokenizer=build_word_tokenizer(task.words), architecture=TINY)
tools = ToolRuntime(tools=(DocumentSearch(),))
algorithm = AEPO(budget=6)
parts = RolloutParts(
    engine=TransformersEngine(policy, max_model_len=256),
    tools=tools,
    reward=PaperReward(),
    chat_format=TagFormat.for_tools(policy.tokenizer, tools.specs),
    allocator=algorithm.allocator,
    branch_policy=algorithm.branch_policy,
    settings=algorithm.rollout_settings(SamplingSettings(max_response_tokens=128)),
)


def show(tree: RolloutTree, parent: int | None = None, depth: int = 0) -> None:
    """Print the segments below one, with the rewards of the trajectories that end there."""
    for segment in (each for each in tree.segments if each.parent_id == parent):
        here = [leaf for leaf in tree.leaves if leaf.segment_id == segment.segment_id]
        ends = [f"{leaf.origin}: reward {leaf.reward.reward:g}" for leaf in here]
        text = parts.chat_format.decode(segment.token_ids)
        print("  " * depth + f"{segment.source} ({len(segment.token_ids)} tokens) {text[:60]}", *ends, sep=" | ")
        show(tree, segment.segment_id, depth + 1)


(tree,) = RolloutSampler(parts).rollout([task.question("train", 0)], seed=0)
show(tree)
print(f"{len(tree.leaves)} trajectories; planned: {tree.global_budget} from the root, {tree.branch_budget} branches")
