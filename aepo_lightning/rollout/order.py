"""One order for what chains add to a tree as chance has it."""

from aepo_lightning.contracts.tree import RolloutTree


def put_in_order(tree: RolloutTree) -> None:
    """Sort leaves, segments, decisions and unused calls by the chains they belong to, and number the segments anew.

    Two trees that hold the same are then the same, in whatever order their chains ran: the files of a run that was
    killed and continued can be compared with those of one that was not.

    Args:
        tree: Finished. Every segment is on the path to a leaf.
    """
    tree.leaves.sort(key=lambda leaf: leaf.seed_path)
    tree.decisions.sort(key=lambda decision: (decision.seed_path, decision.turn))
    tree.unused_calls.sort(key=lambda unused: (unused.seed_path, unused.call_index))
    numbers: dict[int, int] = {}
    for leaf in tree.leaves:
        for segment in tree.path(leaf.segment_id):
            numbers.setdefault(segment.segment_id, len(numbers))
        leaf.segment_id = numbers[leaf.segment_id]
    assert len(numbers) == len(tree.segments), "every segment leads to a leaf"
    for segment in tree.segments:
        segment.segment_id = numbers[segment.segment_id]
        segment.parent_id = None if segment.parent_id is None else numbers[segment.parent_id]
    tree.segments.sort(key=lambda segment: segment.segment_id)
