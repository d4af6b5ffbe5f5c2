"""The saved trajectory and its continuations as one tree, on a page of `aepo-view`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from aepo_lightning.app.paths import writing
from aepo_lightning.app.regrow.regrown import Regrown
from aepo_lightning.app.view.folder import OpenedFolder
from aepo_lightning.app.view.pages import make_page
from aepo_lightning.atomic_files import replacing
from aepo_lightning.contracts.question import Question, SegmentSource
from aepo_lightning.contracts.tree import Leaf, LeafOrigin, RolloutTree, Segment

_NO_GROUP = "A trajectory that was regrown belongs to no group."


def write_page(path: Path, folder: Path, regrown: Regrown, allowed: Sequence[str] = ()) -> None:
    """Write a page on which the siblings at the node are the saved continuation and the new ones.

    Args:
        path: Of the file.
        folder: Of the run.
        regrown: What is shown.
        allowed: What the configuration in the folder may call beside the parts of this library.

    Raises:
        ConfigError: If it cannot be written.
    """
    opened = OpenedFolder.open(folder, allowed)
    opened = replace(opened, algorithm=None, absences={**opened.absences, "advantage": _NO_GROUP})
    page = make_page(opened, f"{regrown.node.rollout}, regrown", shown_trees(regrown))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(page, encoding="utf-8")


def shown_trees(regrown: Regrown) -> list[RolloutTree]:
    """Return the saved trajectory and the new ones in one tree, in which they share what is the same.

    With another prompt they share nothing, and are two trees.
    """
    node = regrown.node
    trees = [_empty(node.tree, node.tree.question)]
    _add(trees[0], node.path, node.leaf)
    if regrown.chains[0].path[0].token_ids != node.path[0].token_ids:
        question = regrown.start.question
        trees.append(_empty(node.tree, replace(question, question_id=f"{question.question_id}, regrown")))
    for number, chain in enumerate(regrown.chains):
        path = (*node.leaf.seed_path, "regrown", number)
        _add(trees[-1], chain.path, replace(chain.leaf, origin=LeafOrigin.BRANCH, seed_path=path))
    for tree in trees:
        parents = Counter(each.parent_id for each in tree.segments)
        for each in tree.segments:
            each.is_branch_point = parents[each.segment_id] > 1
    return trees


def _empty(like: RolloutTree, question: Question) -> RolloutTree:
    return RolloutTree(
        question=question,
        seed=like.seed,
        temperature=like.temperature,
        global_budget=1,
        weights_version=like.weights_version,
    )


def _add(tree: RolloutTree, path: Sequence[Segment], leaf: Leaf) -> None:
    parent: int | None = None
    for each in path:
        parent = _twin(tree, parent, each)
    assert parent is not None, "a trajectory has a prompt"
    tree.leaves.append(replace(leaf, segment_id=parent))


def _twin(tree: RolloutTree, parent: int | None, segment: Segment) -> int:
    """Return the segment below a parent that is the same as another one, added where there is none."""
    for each in tree.segments:
        if each.parent_id == parent and (each.source, each.token_ids) == (segment.source, segment.token_ids):
            return each.segment_id
    numbers = {"logprobs": segment.logprobs, "entropies": segment.entropies}
    answers = {"tool_call": segment.tool_call, "tool_result": segment.tool_result}
    own = numbers if segment.source is SegmentSource.POLICY else answers
    return tree.add(parent, segment.source, list(segment.token_ids), **own).segment_id
