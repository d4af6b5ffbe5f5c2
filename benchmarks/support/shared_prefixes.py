"""Random trees in which a given share of the tokens of all trajectories is shared."""

from collections.abc import Sequence
from random import Random

from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import Question, SegmentSource
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.contracts.tree import Leaf, LeafOrigin, RolloutTree

NUM_LEAVES = 8
LENGTHS = (600, 800)
PROMPT_LENGTH = 64
TOOL_LENGTH = 32
VOCABULARY = 4096


def make_trees(share: float, seed: int = 0) -> list[RolloutTree]:
    """Return one question with 8 trajectories, or 8 questions with one each where nothing is to be shared.

    Trajectories leave each other in pairs at three depths d, 5/4 d and 3/2 d, after a tool result. Of 8 trajectories of
    length L that repeats 7 d + 10 d / 4 tokens, a share 9.5 d / (8 L).
    """
    random = Random(seed)
    lengths = [random.randint(*LENGTHS) for _ in range(NUM_LEAVES)]
    if share == 0.0:
        return [_grown([length], (), random, f"q{index}") for index, length in enumerate(lengths)]
    depth = share * sum(lengths) / 9.5
    return [_grown(lengths, (round(depth), round(1.25 * depth), round(1.5 * depth)), random, "q")]


def _grown(lengths: Sequence[int], depths: Sequence[int], random: Random, name: str) -> RolloutTree:
    question = Question(question_id=name, messages=(), answers=())
    tree = RolloutTree(question=question, global_budget=len(lengths))
    root = _add(tree, None, PROMPT_LENGTH, SegmentSource.PROMPT, random)

    def grow(parent: int, own: Sequence[int], level: int) -> None:
        end = tree.segments[parent].end
        if level == len(depths):
            leaf = _add(tree, parent, max(1, own[0] - end), SegmentSource.POLICY, random)
            reward = RewardOutput(reward=random.random(), is_correct=False, is_well_formed=True)
            tree.leaves.append(_leaf(leaf, reward, len(tree.leaves)))
            return
        turn = _add(tree, parent, max(1, depths[level] - end - TOOL_LENGTH), SegmentSource.POLICY, random)
        result = _add(tree, turn, TOOL_LENGTH, SegmentSource.TOOL, random)
        half = len(own) // 2
        grow(result, own[:half], level + 1)
        grow(result, own[half:], level + 1)

    grow(root, lengths, 0)
    return tree


def _add(tree: RolloutTree, parent: int | None, length: int, source: SegmentSource, random: Random) -> int:
    tokens = [random.randrange(8, VOCABULARY) for _ in range(length)]
    numbers = {"logprobs": [0.0] * length, "entropies": [0.0] * length} if source is SegmentSource.POLICY else {}
    return tree.add(parent, source, tokens, **numbers).segment_id


def _leaf(segment: int, reward: RewardOutput, index: int) -> Leaf:
    return Leaf(
        segment_id=segment,
        origin=LeafOrigin.ROOT,
        stop_reason=StopReason.EOS,
        seed_path=("r", index),
        reward=reward,
    )
