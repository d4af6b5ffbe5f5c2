"""Trees that hold the same are the same, whatever chain was first."""

import asyncio
import json
from random import Random

import pytest

from aepo_lightning.rollout import GroupRollout, tree_to_dict
from aepo_lightning.rollout.order import put_in_order
from aepo_lightning.rollout.record import read_events
from tests.rollout.test_record import SETTINGS, FickleTools, FromRecord, grow_one, parts_of, pausing, record_of
from tests.support.builders import ScriptedEngine, canonical, make_parts, make_question, random_script


def grown(pauses):
    parts = make_parts(ScriptedEngine(random_script(), pauses=pauses), tools=FromRecord(record_of(EMPTY)), budget=6)
    return asyncio.run(GroupRollout(parts, make_question(), 3).grow())


EMPTY = grow_one(make_parts(ScriptedEngine(random_script(p_call=0.0))))


@pytest.mark.parametrize("pauses", [pausing, lambda params: -params.seed % 7], ids=["some", "others"])
def test_segments_stand_in_the_order_of_the_leaves(pauses):
    tree = grown(pauses)
    assert tree_to_dict(tree) == tree_to_dict(grown(lambda _: 0))
    assert [segment.segment_id for segment in tree.segments] == list(range(len(tree.segments)))
    ends = [leaf.segment_id for leaf in tree.leaves]
    assert ends == sorted(ends)


@pytest.mark.parametrize("changes", SETTINGS[:2], ids=["paper", "released"])
@pytest.mark.parametrize("seed", range(2))
def test_a_tree_from_its_record_is_the_same_to_the_last_number(changes, seed):
    events = []
    engine = ScriptedEngine(random_script(), pauses=pausing)
    tree = grow_one(
        parts_of(engine, FickleTools(seed), **changes), seed, on_event=lambda e: events.append(json.dumps(e))
    )
    record = read_events([json.loads(event) for event in events])
    again = grow_one(parts_of(ScriptedEngine(random_script()), FickleTools(9), **changes), seed, record)
    found, expected = tree_to_dict(again), tree_to_dict(tree)
    if changes.get("penalty_scope") == "question":  # whose counter depends on the order of the chains
        found["decisions"] = expected["decisions"] = []
    assert found == expected


def test_order_changes_no_path():
    tree = grow_one(parts_of(ScriptedEngine(random_script()), FickleTools()), 1)
    before = canonical(tree)
    numbers = list(range(1, len(tree.segments)))
    Random(0).shuffle(numbers)
    renumber = dict(enumerate([0, *numbers]))
    for segment in tree.segments:
        segment.segment_id = renumber[segment.segment_id]
        segment.parent_id = None if segment.parent_id is None else renumber[segment.parent_id]
    for leaf in tree.leaves:
        leaf.segment_id = renumber[leaf.segment_id]
    tree.segments.sort(key=lambda segment: segment.segment_id)
    put_in_order(tree)
    assert canonical(tree) == before
    assert all(segment.parent_id is None or segment.parent_id < segment.segment_id for segment in tree.segments)
