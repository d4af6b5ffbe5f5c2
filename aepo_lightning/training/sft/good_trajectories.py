"""Trajectories that are worth learning from, as conversations: what rejection sampling keeps of rollouts.

A conversation is kept only if reading it again gives the trajectory's own tokens after the prompt, so that what is
learned is what was sampled and rewarded. Where a string ended the trajectory, the end of its message is learned, too.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal, get_args

from aepo_lightning.contracts.chat_format import ChatFormat
from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tool import ToolSpec
from aepo_lightning.contracts.tree import Leaf, RolloutTree
from aepo_lightning.errors import ConfigError
from aepo_lightning.rollout.steps import opening_of
from aepo_lightning.tasks.conversations import UnusableRowError, read_conversation
from aepo_lightning.training.demonstrations import encode_demonstration, opened_thoughts
from aepo_lightning.training.sft.turns import demonstrations_of

Preference = Literal["reward", "shortest", "first"]
"""Which of a question's good trajectories come first: by reward, then by length; by length; as they were grown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which trajectories are good.

    Raises:
        ConfigError: If a value has no meaning.
    """

    min_reward: float | int = 1.0
    """Least reward."""
    per_question: int = 1
    """At most so many of one question."""
    prefer: Preference | str = "reward"
    """Which ones, if there are more."""
    min_tool_calls: int = 0
    """Least number of tool calls."""
    is_well_formed: bool = True
    """Whether a trajectory must have the form that its reward asks for."""

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        if math.isnan(self.min_reward):
            raise ConfigError("`min_reward` must be a number, but got nan. Write min_reward=1.")
        for name, least in (("per_question", 1), ("min_tool_calls", 0)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"`{name}` must be at least {least}, but got {value}. Raise it.")
        if self.prefer not in get_args(Preference):
            raise ConfigError(f"`prefer` must be one of {', '.join(get_args(Preference))}, but got {self.prefer!r}.")

    def objection(self, leaf: Leaf) -> str | None:
        """Return why a trajectory is not good, or None if it is."""
        reward = leaf.reward
        if reward is None or not reward.is_scored:
            return "without a reward"
        if leaf.stop_reason is not StopReason.EOS:
            return "that did not end by themselves"
        if reward.reward < self.min_reward:
            return f"with a reward below {self.min_reward:g}"
        if self.is_well_formed and not reward.is_well_formed:
            return "that are not well formed"
        if leaf.num_tool_calls < self.min_tool_calls:
            return f"with fewer than {self.min_tool_calls} tool calls"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    row: dict[str, Any]
    reward: float
    num_tokens: int

    def rank(self, prefer: str) -> tuple[float, int]:
        return {"reward": (-self.reward, self.num_tokens), "shortest": (0.0, self.num_tokens)}.get(prefer, (0.0, 0))


@dataclass(slots=True, kw_only=True)
class GoodTrajectories:
    """Collects good trajectories from trees, one file of a journal after another."""

    selection: Selection
    chat_format: ChatFormat
    specs: Sequence[ToolSpec]
    end_token_id: int
    """What ends a message of the policy."""
    num_trajectories: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """How many trajectories are not among the rows, by reason."""
    _found: dict[object, list[_Candidate]] = field(default_factory=lambda: defaultdict(list))
    _seen: set[bytes] = field(default_factory=set)

    def add(self, origin: str, trees: Iterable[RolloutTree]) -> None:
        """Look at all trajectories of some trees.

        Args:
            origin: The file that they are from, for the rows.
            trees: Finished ones.
        """
        for tree in trees:
            for leaf in tree.leaves:
                self.num_trajectories += 1
                problem = self.selection.objection(leaf) or self._take(origin, tree, leaf)
                if problem is not None:
                    self.left_out[problem] += 1

    def _take(self, origin: str, tree: RolloutTree, leaf: Leaf) -> str | None:
        trajectory = tree.trajectory(leaf)
        digest = blake2b(repr(trajectory.token_ids).encode(), digest_size=16).digest()
        if digest in self._seen:
            return "that were there already"
        self._seen.add(digest)
        row = _conversation_row(tree, leaf, self.chat_format)
        response = list(zip(trajectory.token_ids, trajectory.is_sampled, strict=True))[trajectory.prompt_length :]
        if self._read_again(row) not in (response, [*response, (self.end_token_id, True)]):
            return "whose text reads as other tokens"
        assert leaf.reward is not None, "it has been looked at"
        row |= {"source": origin, "chain": "/".join(map(str, leaf.seed_path))}
        candidate = _Candidate(row=row, reward=leaf.reward.reward, num_tokens=len(trajectory.token_ids))
        self._found[tree.question.messages].append(candidate)
        return None

    def _read_again(self, row: dict[str, Any]) -> list[tuple[int, bool]] | None:
        """Return what training on a row would use after its prompt, tokens and mask; None if it cannot be used."""
        try:
            shown = demonstrations_of(read_conversation(row), self.chat_format, self.specs, "row")[-1]
        except UnusableRowError:
            return None
        tokens, is_trained = encode_demonstration(shown, self.chat_format, self.end_token_id)
        start = len(self.chat_format.encode_prompt(shown.question.messages))
        return list(zip(tokens, is_trained, strict=True))[start:]

    def rows(self) -> list[dict[str, Any]]:
        """Return the best of each question as rows of a JSONL file, questions in the order in which they came."""
        most, prefer = self.selection.per_question, self.selection.prefer
        ordered = [sorted(found, key=lambda each: each.rank(prefer)) for found in self._found.values()]
        return [candidate.row for found in ordered for candidate in found[:most]]

    def summary(self) -> str:
        """Return how many were looked at and kept, and why the others were not."""
        most = self.selection.per_question
        num_kept = sum(min(len(found), most) for found in self._found.values())
        num_more = sum(map(len, self._found.values())) - num_kept
        reasons = Counter(self.left_out)
        if num_more:
            reasons[f"beyond {most} of a question"] = num_more
        lines = [f"  {count} {reason}" for reason, count in reasons.most_common()]
        head = f"{self.num_trajectories} trajectories, {num_kept} good ones of {len(self._found)} questions"
        return "\n".join([f"{head}; left out:" if lines else f"{head}.", *lines])


def _conversation_row(tree: RolloutTree, leaf: Leaf, chat_format: ChatFormat) -> dict[str, Any]:
    """Return a trajectory as OpenAI messages, with what is known about it beside them.

    Calls stand in the texts, as the policy wrote them. Each text begins with the thoughts that the chat template opened
    in the policy's name.

    Args:
        tree: What it belongs to.
        leaf: Where it ends.
        chat_format: That it was sampled with.
    """
    messages = [{"role": each.role, "content": each.content} for each in tree.question.messages]
    opened = opening = opening_of(chat_format)
    for segment in tree.path(leaf.segment_id)[1:]:
        if segment.source is SegmentSource.POLICY:
            messages.append({"role": "assistant", "content": opened + chat_format.decode(segment.token_ids)})
            continue
        assert segment.tool_call is not None, "a tool segment answers a call"
        assert segment.tool_result is not None, "a tool segment holds a result"
        messages.append({"role": "tool", "name": segment.tool_call.tool, "content": segment.tool_result.text})
        opened = opened_thoughts(chat_format.decode(segment.token_ids)) if opening else ""
    reward = leaf.reward
    return {
        "messages": messages,
        "question_id": tree.question.question_id,
        "answers": list(tree.question.answers),
        "reward": None if reward is None else reward.reward,
    }
