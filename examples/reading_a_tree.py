"""Reading rollout trees, as a run leaves them: segments, branch points, siblings, decisions, what sharing saved.

    python examples/reading_a_tree.py [RUN]

RUN is the folder of a run, such as runs/quickstart/<time>; its newest iteration is read. Without one, a tree is made.
"""

import sys
from pathlib import Path

from aepo_lightning import Question, RolloutJournal, RolloutTree
from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.contracts.tree import Leaf, LeafOrigin


def small_tree() -> RolloutTree:
    """Return a tree of three trajectories: one of two root chains has a branch after its tool result."""
    tree = RolloutTree(
        question=Question(question_id="q", messages=(), answers=("7",)), global_budget=2, branch_budget=1
    )
    turn = {"logprobs": [-0.1, -1.2], "entropies": [0.2, 1.1]}
    prompt = tree.add(None, SegmentSource.PROMPT, [1, 2, 3])
    asks = tree.add(prompt.segment_id, SegmentSource.POLICY, [10, 11], **turn)
    result = tree.add(asks.segment_id, SegmentSource.TOOL, [20, 21, 22, 23], is_branch_point=True)
    parents = {LeafOrigin.PROBE: result, LeafOrigin.BRANCH: result, LeafOrigin.ROOT: prompt}
    for number, (origin, reward) in enumerate(zip(parents, (1.0, 0.0, 0.0), strict=True)):
        end = tree.add(parents[origin].segment_id, SegmentSource.POLICY, [30 + number, 40], **turn)
        scored = RewardOutput(reward=reward, is_correct=reward > 0, is_well_formed=True, reason="")
        leaf = Leaf(segment_id=end.segment_id, origin=origin, stop_reason=StopReason.EOS, seed_path=(number,))
        leaf.reward = scored
        tree.leaves.append(leaf)
    return tree


def newest(run: Path) -> list[RolloutTree]:
    """Return the trees of the last iteration that a run has finished."""
    files = [path for path in run.glob("rollouts/train-*.jsonl") if not path.name.endswith(".steps.jsonl")]
    return list(RolloutJournal(run / "rollouts").read(max(files).stem))


for tree in (newest(Path(sys.argv[1]))[:3]) if sys.argv[1:] else [small_tree()]:
    flat = sum(segment.end for segment in (tree.segments[leaf.segment_id] for leaf in tree.leaves))
    stored = sum(len(segment.token_ids) for segment in tree.segments)
    print(f"{tree.question.question_id}: {len(tree.leaves)} trajectories, m = {tree.global_budget}")
    print(f"  {flat} tokens in all, {stored} stored, {tree.num_generated_tokens} sampled by the policy")
    for leaf, weight in zip(tree.leaves, tree.leaf_weights("inverse_fan_out"), strict=True):
        path = " > ".join(f"{segment.source}:{len(segment.token_ids)}" for segment in tree.path(leaf.segment_id))
        print(f"  {leaf.origin}, reward {leaf.reward.reward:g}, weight {weight:g}: {path}")
    for segment in (each for each in tree.segments if each.is_branch_point):
        heirs = [leaf for leaf in tree.leaves if segment in tree.path(leaf.segment_id)]
        print(f"  after segment {segment.segment_id} go {len(heirs)}: rewards {[leaf.reward.reward for leaf in heirs]}")
    for decision in tree.decisions:
        change, opened = decision.entropy - decision.initial_entropy, decision.num_opened
        print(f"  chain {decision.root}, turn {decision.turn}: dH {change:+.3f}, {opened} branches")
