"""The name of a place in a saved tree, the same in all commands: what the address of a page of `aepo-view` says.

q=28:trail-train-28                       a question: its first trajectory, from the prompt on
q=28:trail-train-28&leaf=r/1              a trajectory by its branch path, or by its number from 0
q=28:trail-train-28&leaf=1&seg=4          a segment of it: the prompt (0), a turn of the policy, or a tool result
q=28:trail-train-28&leaf=1&token=12       a token by its place in the response, tool results included
view/train-00003.html#q=...&leaf=1&seg=4  a whole address, which also says the iteration

Numbers are those of the page. Spaces and `&` in ids are written as in addresses (`+`, `%26`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlencode

from aepo_lightning.app.first_difference import chain_name
from aepo_lightning.app.saved_trees import RolloutFiles, rollout_files
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tree import Leaf, RolloutTree, Segment
from aepo_lightning.errors import ConfigError
from aepo_lightning.rollout import RolloutJournal

_PAGE = re.compile(r"(train-\d+)\.html$")
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeName:
    """What somebody wrote to name a node."""

    question: str
    leaf: str | None = None
    """A branch path or a number. None is the first trajectory that has the segment."""
    segment: int | None = None
    token: int | None = None
    rollout: str | None = None
    """Such as `train-00012`. None is the first one that asks the question."""

    @classmethod
    def parse(cls, text: str) -> "NodeName":
        """Read a name or an address; a text without `q=` is the id of a question.

        Raises:
            ConfigError: If it names no question, or a number is none.
        """
        address, sign, fragment = text.rpartition("#")
        words = fragment if sign else text
        if not re.search(r"(^|&)q=", words):
            if sign or re.match(r"(leaf|seg|token)=", words):
                raise ConfigError(f"`--node` must name a question (q=...), but got {text!r}. {_FORM}")
            return cls(question=text)
        found = {name: values[-1] for name, values in parse_qs(words).items()}
        if not found.get("q"):
            raise ConfigError(f"`--node` must name a question (q=...), but got {text!r}. {_FORM}")
        page = _PAGE.search(unquote(address))
        return cls(
            question=found["q"],
            leaf=found.get("leaf"),
            segment=_number(found, "seg", text),
            token=_number(found, "token", text),
            rollout=page[1] if page else None,
        )


_FORM = "Write q=QUESTION&leaf=r/1&seg=4 in quotes, or copy the address of the page of aepo-view."


def _number(found: dict[str, str], name: str, text: str) -> int | None:
    if name not in found:
        return None
    if not re.fullmatch("[0-9]{1,9}", found[name]):
        raise ConfigError(f"`{name}` of `--node` must be a number from 0 on, but got {found[name]!r} in {text!r}.")
    return int(found[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A place on a trajectory of a saved tree."""

    rollout: str
    """Such as `train-00012`."""
    tree: RolloutTree
    leaf: Leaf
    place: int
    """Of the segment on the path of the trajectory; 0 is the prompt."""
    token: int | None = None
    """Of the segment's tokens, which one; None where only the segment was named."""

    @property
    def path(self) -> Sequence[Segment]:
        """The segments of the trajectory, from the prompt on."""
        return self.tree.path(self.leaf.segment_id)

    @property
    def segment(self) -> Segment:
        """The segment that was named."""
        return self.path[self.place]

    @property
    def iteration(self) -> int:
        """In which the question was asked."""
        return int(self.rollout.split("-")[1])

    def __str__(self) -> str:
        """Return the name that leads back here."""
        words = {"q": self.tree.question.question_id, "leaf": chain_name(self.leaf), "seg": self.segment.segment_id}
        if self.token is not None:
            words["token"] = self._start(self.place) + self.token
        return urlencode(words, safe="/:", errors="replace")

    def _start(self, place: int) -> int:
        """Return the tokens of the response before a segment."""
        return self.path[place].end - len(self.path[place].token_ids) - self.path[0].end


def find_node(folder: Path, name: NodeName, iteration: int | None = None) -> Node:
    """Find a node among the saved trees of a run.

    Args:
        folder: Of the run.
        name: Of the node.
        iteration: In which the question was asked. Default: as the name says, or else the first.

    Raises:
        ConfigError: If there is no such node; what there is instead is named.
        DataError: If a file is damaged.
    """
    present = rollout_files(folder)
    wanted = name.rollout if iteration is None else f"train-{iteration:05d}"
    files = [each for each in present if wanted in (None, each.name)]
    if not files:
        there = f"{present[0].name} to {present[-1].name}"
        raise ConfigError(f"The iteration must have saved trees, but {wanted} has none in {folder} ({there} have).")
    rollout, tree = _tree_of(files, name.question)
    leaf = _leaf_of(tree, name)
    node = Node(rollout=rollout, tree=tree, leaf=leaf, place=0)
    if name.token is not None:
        return _at_token(node, name.token, name.segment)
    return node if name.segment is None else _at_segment(node, name.segment)


def _tree_of(files: Sequence[RolloutFiles], question_id: str) -> tuple[str, RolloutTree]:
    shown: list[str] = []
    for each in files:
        for path in each.paths:
            for tree in RolloutJournal(path.parent).read(path.stem):
                if tree.question.question_id == question_id:
                    return each.name, tree
                shown.append(tree.question.question_id)
    where = files[0].name if len(files) == 1 else f"{files[0].name} to {files[-1].name}"
    first = ", ".join(map(repr, shown[:_SHOWN]))
    raise ConfigError(
        f"The question must be that of a saved tree, but none of the {len(shown)} in {where} is {question_id!r}. The "
        f"first are {first}."
    )


def find_leaf(tree: RolloutTree, name: str) -> Leaf:
    """Return a trajectory by its branch path, such as r/3/1, or by its number, from 0.

    Raises:
        ConfigError: If there is none.
    """
    names = [chain_name(leaf) for leaf in tree.leaves]
    if name in names:
        return tree.leaves[names.index(name)]
    if re.fullmatch("[0-9]{1,9}", name) and int(name) < len(names):
        return tree.leaves[int(name)]
    raise ConfigError(f"`--leaf` must be one of {', '.join(names)}, or a number below {len(names)}, but got {name!r}.")


def _leaf_of(tree: RolloutTree, name: NodeName) -> Leaf:
    if name.leaf is not None:
        return find_leaf(tree, name.leaf)
    through = (leaf for leaf in tree.leaves if name.segment in [each.segment_id for each in tree.path(leaf.segment_id)])
    return next(through, tree.leaves[0])


def _at_segment(node: Node, segment_id: int) -> Node:
    places = [each.segment_id for each in node.path]
    if segment_id not in places:
        there = ", ".join(f"{each.segment_id} ({what_it_is(each)})" for each in node.path)
        raise ConfigError(
            f"The segment must be one of trajectory {chain_name(node.leaf)}: {there}; but got {segment_id}."
        )
    return Node(rollout=node.rollout, tree=node.tree, leaf=node.leaf, place=places.index(segment_id))


def _at_token(node: Node, token: int, segment_id: int | None) -> Node:
    at = node.path[0].end + token
    number = node.path[-1].end - node.path[0].end
    place = next((place for place, each in enumerate(node.path) if place and at < each.end), None)
    if place is None:
        raise ConfigError(
            f"The token must be one of the {number} of the response of trajectory {chain_name(node.leaf)}, counted "
            f"from 0 with tool results, but got {token}."
        )
    found = node.path[place]
    if segment_id not in (None, found.segment_id):
        raise ConfigError(f"Token {token} must lie in segment {segment_id}, but lies in {found.segment_id}.")
    inside = at - (found.end - len(found.token_ids))
    return Node(rollout=node.rollout, tree=node.tree, leaf=node.leaf, place=place, token=inside)


def what_it_is(segment: Segment) -> str:
    """Return what a segment is, in a word or two."""
    if segment.source is SegmentSource.TOOL:
        return f"result of {segment.tool_call.tool!r}" if segment.tool_call is not None else "result"
    return "prompt" if segment.source is SegmentSource.PROMPT else "turn"
