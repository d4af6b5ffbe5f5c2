"""Trees written by hand whose trajectories share turns, as branches of a rollout do."""

from aepo_lightning.contracts.question import Question, SegmentSource
from aepo_lightning.contracts.tree import RolloutTree
from tests.support.training import make_leaf


def add_turns(tree, parent, turns):
    """Append turns below a segment and return the last; log-probs and entropies tell the tokens."""
    for source, tokens in turns:
        numbers = {}
        if source is SegmentSource.POLICY:
            numbers = {"logprobs": [-t / 10 for t in tokens], "entropies": [t / 100 for t in tokens]}
        parent = tree.add(parent, source, list(tokens), **numbers).segment_id
    return parent


def grow(roots, question_id="q", prompt=(3, 4)):
    """A tree from nested lists: a chain is its turns, and at its end a reward or the list of chains that go on.

    The first chain of such a list is the one that was there, the others are its branches.
    """
    tree = RolloutTree(question=Question(question_id=question_id, messages=(), answers=()))
    tree.add(None, SegmentSource.PROMPT, list(prompt))

    def go_on(chain, parent, path, turn):
        *turns, end = chain
        parent = add_turns(tree, parent, turns)
        if not isinstance(end, list):
            leaf = make_leaf(parent, end)
            leaf.seed_path = path
            tree.leaves.append(leaf)
            return
        tree.segments[parent].is_branch_point = True
        for index, each in enumerate(end):
            go_on(each, parent, (*path, "b", turn, index - 1) if index else path, turn + 1)

    for index, chain in enumerate(roots):
        go_on(chain, 0, ("r", index), 1)
    tree.leaves.sort(key=lambda leaf: leaf.seed_path)
    return tree
