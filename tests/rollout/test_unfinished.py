"""What is on file of trees that grow is what they will have been."""

import pytest

from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.errors import EngineError
from aepo_lightning.rollout import RolloutJournal, RolloutSampler, read_unfinished
from tests.rollout.test_record import WEIGHTS, FickleTools, Mortal, parts_of, pausing
from tests.support.builders import make_question, random_script

QUESTIONS = [make_question(f"q{index}") for index in range(4)]


def sampler(journal, **fields):
    return RolloutSampler(parts_of(Mortal(random_script(), pauses=pausing, **fields), FickleTools()), 4, journal)


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """What is on file after a crash, the path of it, and the trees that grew from there."""
    journal = RolloutJournal(tmp_path_factory.mktemp("run"))
    with pytest.raises(EngineError, match="The engine died"):
        sampler(journal, dies_at=40).rollout(QUESTIONS, 7, "train", weights=WEIGHTS)
    found, content = read_unfinished(journal.steps_path("train")), journal.steps_path("train").read_bytes()
    return found, content, sampler(journal).rollout(QUESTIONS, 7, "train", weights=WEIGHTS)


def turns(tree, leaf):
    path = tree.path(leaf.segment_id)
    return [(each.token_ids, each.logprobs, each.entropies) for each in path if each.source is SegmentSource.POLICY]


def results(tree, leaf):
    return [each.tool_result for each in tree.path(leaf.segment_id) if each.tool_result is not None]


def test_trajectories_that_grow_begin_as_they_will_have(cut):
    found, _, trees = cut
    whole = {tree.question.question_id: tree for tree in trees}
    num_branches = num_decisions = 0
    assert len(found) > 1
    for tree in found:
        final = whole[tree.question.question_id]
        leaves = {leaf.seed_path: leaf for leaf in final.leaves}
        assert (tree.question.messages, tree.seed, tree.stamp) == (final.question.messages, final.seed, final.stamp)
        for leaf in tree.leaves:
            grown, own = turns(tree, leaf), turns(final, leaves[leaf.seed_path])
            assert grown == own[: len(grown)]
            seen = results(tree, leaf)
            assert seen == results(final, leaves[leaf.seed_path])[: len(seen)]
            num_branches += len(leaf.seed_path) > 3
        decided = {(each.seed_path, each.turn): each for each in final.decisions}
        for decision in tree.decisions:
            assert decided[decision.seed_path, decision.turn] == decision
            num_decisions += 1
    assert num_branches
    assert num_decisions


def test_what_is_damaged_is_left_out_with_what_came_after_it(cut, tmp_path):
    found, content, _ = cut
    path, lines = tmp_path / "train.steps.jsonl", content.splitlines(keepends=True)
    assert read_unfinished(path) == []
    path.write_bytes(b"".join(lines[1:]))
    assert read_unfinished(path) == [], "nobody knows of which seed"
    own = [place for place, line in enumerate(lines) if b'"question":"q0"' in line]
    lines[own[2]] = b"x" + lines[own[2]]
    path.write_bytes(b"".join(lines) + b'{"cut')
    left = {tree.question.question_id: tree for tree in read_unfinished(path)}
    assert len(left["q0"].segments) == 2, "the prompt and one turn"
    assert [tree for tree in left.values() if tree != left["q0"]] == [
        tree for tree in found if tree.question.question_id != "q0"
    ]
