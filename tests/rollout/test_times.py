"""When things happened stands beside the trees, and may be lost."""

from itertools import pairwise

from aepo_lightning.branching import EntropyBalanced
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.rollout import RolloutJournal, decision_uniform, tree_from_dict, tree_to_dict
from aepo_lightning.rollout.times import times_path
from tests.support.builders import RootChains, ScriptedEngine, grow, random_script

RULE = EntropyBalanced(gamma=4.0, penalty_per_step=0.25)


def grown(rule=RULE):
    """A tree with some decisions."""
    engine = ScriptedEngine(random_script(p_call=0.9))
    (tree,) = grow(engine, budget=6, allocator=RootChains(num_root_chains=2), branch_policy=rule)
    assert tree.decisions
    return tree


def test_times_of_a_chain_follow_each_other_and_are_read_back(tmp_path):
    tree = grown()
    for leaf in tree.leaves:
        path = tree.path(leaf.segment_id)
        assert path[0].span_s is None, "nobody made the prompt"
        assert all(segment.span_s is not None for segment in path[1:])
        spans = [segment.span_s for segment in path[1:]]
        assert all(0 <= begin <= end for begin, end in spans)
        turns = [s.span_s for s in path if s.source is SegmentSource.POLICY]
        assert all(before[1] <= after[0] for before, after in pairwise(turns))
    journal = RolloutJournal(tmp_path)
    journal.append("train", tree)
    (read,) = journal.read_timed("train")
    assert [s.span_s is None for s in read.segments] == [s.span_s is None for s in tree.segments]
    assert read.segments[1].span_s[1] == round(tree.segments[1].span_s[1], 6)
    assert all(segment.span_s is None for (tree,) in [journal.read("train")] for segment in tree.segments)
    times_path(tmp_path, "train").write_text("rubbish\n")
    (read,) = journal.read_timed("train")
    assert all(segment.span_s is None for segment in read.segments)


def test_the_record_of_a_decision_is_enough_to_take_it_again():
    tree = grown()
    for decision in tree.decisions:
        assert decision.penalty_per_step == 0.25
        uniform = decision_uniform(tree.seed, tree.question.question_id, decision.seed_path, decision.turn)
        p = (0.5 + 4.0 * (decision.entropy - decision.initial_entropy)) * (1 - 0.25 * decision.consecutive_branches)
        assert decision.num_wanted == (uniform < p)


def test_decisions_of_earlier_versions_are_read():
    plain = tree_to_dict(grown())
    for decision in plain["decisions"]:
        del decision["penalty_per_step"]
    assert all(decision.penalty_per_step is None for decision in tree_from_dict(plain).decisions)
