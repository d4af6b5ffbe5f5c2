"""Trees whose rollout is not over, as far as their steps are on file: for whoever watches a run.

The file of steps has what is needed to go on, so these trees lack the tokens of prompts and tool results, rewards, the
split of the budget and all times. Nor does it say which trajectories have ended: some wait for their reward.
"""

import struct
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import Message, Question, SegmentSource
from aepo_lightning.contracts.tree import BranchDecision, Leaf, LeafOrigin, RolloutTree
from aepo_lightning.errors import DataError
from aepo_lightning.rollout.checked_lines import read_lines
from aepo_lightning.rollout.record import Event, SeedPath, read_events


def read_unfinished(path: Path) -> list[RolloutTree]:
    """Return what is on file of trees that grow, or grew until a crash.

    Args:
        path: Of the steps of a rollout, which may be written at this moment, or be gone.

    Returns:
        A tree for each question of which a generation is on file, also of those whose finished trees stand elsewhere.
        Each leaf is as far as a chain has come; its stop reason means nothing. What is damaged is left out, and what
        came after it.
    """
    header: Event = {}
    events: dict[str, list[Event]] = defaultdict(list)
    for line in read_lines(path):
        try:
            event = line.load()
        except DataError:
            continue
        if "seed" in event:
            header = event
        elif event.pop("number", None) == len(events[question := str(event.pop("question", None))]):
            events[question].append(event)
    if not header:
        return []
    trees = [_tree(question_id, header, found) for question_id, found in events.items()]
    return [tree for tree in trees if tree is not None and tree.leaves]


def _tree(question_id: str, header: Event, events: Sequence[Event]) -> RolloutTree | None:
    """Return the tree of a question; None if another version of this library wrote its steps."""
    try:
        messages = tuple(Message(**each) for each in events[0].get("messages", ()))
        question = Question(question_id=question_id, messages=messages, answers=())
        grown = _Grown(tree=RolloutTree(question=question, seed=header["seed"], stamp=header["stamp"]))
        for event in events[1:]:
            grown.take(event)
    except (IndexError, KeyError, TypeError, ValueError, struct.error):
        return None
    return grown.finish()


@dataclass(kw_only=True)
class _Grown:
    """A tree and where its chains stand."""

    tree: RolloutTree
    ends: dict[SeedPath, int] = field(default_factory=dict)
    """The last segment of each chain."""
    starts: dict[tuple[SeedPath, int], int] = field(default_factory=dict)
    """The segment before each turn of each chain."""
    num_calls: dict[SeedPath, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        self.tree.add(None, SegmentSource.PROMPT, [])

    def take(self, event: Event) -> None:
        """Add what an event says."""
        chain: SeedPath = tuple(event["chain"])
        step = read_events([event])
        for generation in step.generations.values():
            at = self._end(chain)
            self.starts[chain, event["turn"]] = at
            numbers = {"logprobs": generation.logprobs, "entropies": generation.entropies}
            added = self.tree.add(at, SegmentSource.POLICY, generation.token_ids, **numbers)
            self.ends[chain] = added.segment_id
        for call, result in step.calls.values():
            tool = self.tree.add(self._end(chain), SegmentSource.TOOL, [], tool_call=call, tool_result=result)
            self.ends[chain] = tool.segment_id
            self.num_calls[chain] += 1
        if "decision" in event:
            decision = {**event["decision"], "seed_path": chain}
            self.tree.decisions.append(BranchDecision(**decision))

    def _end(self, chain: SeedPath) -> int:
        """Return where a chain stands; a branch begins where its trunk stood before the turn that it takes again."""
        if chain in self.ends:
            return self.ends[chain]
        if len(chain) <= 3:
            return 0
        trunk, turn = chain[:-3], int(chain[-2])
        # The trunk decides while it generates that turn, so its own may come later.
        return self.starts.get((trunk, turn), self.ends.get(trunk, 0))

    def finish(self) -> RolloutTree:
        """Return the tree with a leaf where each chain stands."""
        for chain, segment_id in sorted(self.ends.items(), key=lambda each: [str(part) for part in each[0]]):
            self.tree.leaves.append(
                Leaf(
                    segment_id=segment_id,
                    origin=LeafOrigin.BRANCH if len(chain) > 3 else LeafOrigin.ROOT,
                    stop_reason=StopReason.EOS,
                    seed_path=chain,
                    num_tool_calls=self.num_calls[chain],
                )
            )
        return self.tree
