"""Trajectories as text that people can read.

What the policy, a tool, a web page or a row of the data wrote is shown as it is and does nothing: it forges no heading,
link or HTML of the page around it, and sends no commands to the terminal that shows the file.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning as L
from typing_extensions import override

from aepo_lightning.callbacks.logger_media import log_text
from aepo_lightning.callbacks.trainer_parts import rollouts_of
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tree import Leaf, RolloutTree, Segment
from aepo_lightning.errors import ConfigError

Decoder = Callable[[Sequence[int]], str]

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Categories of characters that command a terminal, turn text around, are seen by nobody or cannot be written."""
_JOINERS = "\u200c\u200d"
"""Of these, what words of many languages and pictures are written with."""
_PLAIN = re.compile(r"(?!.*www\.)[\w ;:,.'()%+=-]*", re.IGNORECASE)
"""Text that means nothing in Markdown where it stands within a line."""


class RolloutLogger(L.Callback):
    """Writes a few trajectories of one question to the loggers and to `trajectories.md`.

    The question is the one of rank zero whose rewards differ most, and its trajectories are taken evenly from the best
    to the worst. Loggers that take texts get them under `rollout/trajectories`; the file in the trainer's
    `default_root_dir` grows. Nothing else is logged.
    """

    def __init__(self, every_n_epochs: int = 10, num_trajectories: int = 2) -> None:
        """Keep the numbers.

        Args:
            every_n_epochs: Iterations from one writing to the next, the first included.
            num_trajectories: Trajectories each time; fewer if the group is smaller.

        Raises:
            ConfigError: If a number is not positive.
        """
        super().__init__()
        for name, value in (("every_n_epochs", every_n_epochs), ("num_trajectories", num_trajectories)):
            if value < 1:
                raise ConfigError(f"`{name}` must be at least 1, but got {value}. Drop the callback to write nothing.")
        self._every_n_epochs = every_n_epochs
        self._num_trajectories = num_trajectories

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that there are rollouts to write.

        Raises:
            ConfigError: If the trainer's data is of another kind.
        """
        if stage == "fit":
            rollouts_of(trainer, "trees", "decode")

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write trajectories of the rollouts just made."""
        if trainer.current_epoch % self._every_n_epochs or not trainer.is_global_zero:
            return
        rollouts = rollouts_of(trainer, "trees", "decode")
        tree = max(rollouts.trees, key=reward_spread)
        body = describe_tree(tree, rollouts.decode, self._num_trajectories)
        text = f"# Iteration {trainer.current_epoch}, optimiser step {trainer.global_step}\n\n{body}"
        log_text(trainer, "rollout/trajectories", text)
        path = Path(trainer.default_root_dir) / "trajectories.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


def reward_spread(tree: RolloutTree) -> float:
    """Return how far the rewards of a group differ; those without one do not count."""
    rewards = [reward for _, reward in tree.scored_leaves]
    return max(rewards) - min(rewards) if rewards else -1.0


def describe_tree(tree: RolloutTree, decode: Decoder, num_trajectories: int) -> str:
    """Return a question and some of its trajectories, evenly from the best to the worst, as Markdown."""
    worth = [-reward if leaf.is_scored else math.inf for leaf, reward in zip(tree.leaves, tree.rewards, strict=True)]
    ranked = sorted(range(len(worth)), key=worth.__getitem__)
    number = min(num_trajectories, len(ranked))
    shown = [ranked[position * (len(ranked) - 1) // max(number - 1, 1)] for position in range(number)]
    question = tree.question
    parts = [
        f"## Question {_inline(question.question_id)}",
        _fenced(question.messages[-1].content),
        f"Accepted answers: {'; '.join(map(_inline, question.answers))}",
        *(_describe_leaf(tree, index, decode) for index in shown),
    ]
    return "\n\n".join(parts) + "\n"


def _describe_leaf(tree: RolloutTree, index: int, decode: Decoder) -> str:
    leaf = tree.leaves[index]
    heading = f"### Trajectory {index + 1} of {len(tree.leaves)}: {_describe_reward(leaf)}"
    origin = f"Origin {leaf.origin}, ended by {leaf.stop_reason}, {leaf.num_tool_calls} tool calls."
    blocks = [heading, origin]
    for segment in tree.path(leaf.segment_id)[1:]:
        blocks += [_describe_segment(segment), _fenced(decode(segment.token_ids))]
    return "\n\n".join(blocks)


def _describe_reward(leaf: Leaf) -> str:
    assert leaf.reward is not None, "trees are scored before they are trained on"
    reason = f" ({_inline(leaf.reward.reason)})" if leaf.reward.reason else ""
    if not leaf.is_scored:
        return f"no reward{reason}"
    verdict = "correct" if leaf.reward.is_correct else "not correct"
    return f"reward {leaf.reward.reward:.3f}, {verdict}{reason}"


def _describe_segment(segment: Segment) -> str:
    facts = [f"**{segment.source}**", f"{len(segment.token_ids)} tokens"]
    if segment.source is SegmentSource.POLICY and segment.entropies:
        facts.append(f"mean entropy {sum(segment.entropies) / len(segment.entropies):.3f} nats")
    if segment.tool_call is not None and segment.tool_result is not None:
        facts.append(f"{_inline(segment.tool_call.tool)}: {segment.tool_result.status}")
    if segment.is_branch_point:
        facts.append("**branch point**")
    return ", ".join(facts)


def _fenced(text: str) -> str:
    """Return a code block whose fence is longer than any run of backticks inside it."""
    shown = _visible(text, keep="\n\t")
    fence = "`" * max(3, _longest_run(shown) + 1)
    return f"{fence}text\n{shown}\n{fence}"


def _inline(text: str) -> str:
    """Return text for within a line: as it is if it means nothing there, else as code."""
    shown = _visible(text)
    if _PLAIN.fullmatch(shown) and "_" not in shown and shown.strip() == shown:
        return shown
    ticks = "`" * (_longest_run(shown) + 1)
    # The spaces are not shown. They keep apart what begins or ends with a backtick.
    return f"{ticks} {shown} {ticks}" if shown.startswith("`") or shown.endswith("`") else f"{ticks}{shown}{ticks}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _visible(text: str, keep: str = "") -> str:
    """Return text with characters that cannot be seen written as Python writes them.

    Args:
        text: Of anybody.
        keep: Characters that stay as they are.
    """
    return "".join(
        char if char in keep or char in _JOINERS or unicodedata.category(char) not in _HIDDEN else _escaped(char)
        for char in text
    )


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", errors="surrogatepass").decode("ascii")
