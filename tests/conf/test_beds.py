"""What a test bed must have for the terms of an algorithm to act in it."""

import pytest

from aepo_lightning.app.build import build
from aepo_lightning.contracts.question import SegmentSource
from tests.support.composed import composed
from tests.support.slow import first_quick


@pytest.mark.parametrize("name", first_quick(["stability", "sparse", "burst"]))
def test_a_bed_has_many_steps_on_one_batch_large_groups_and_turns_as_long_as_entropies_are_measured(name):
    cfg = composed(f"+experiment={name}")
    assert cfg.algorithm.budget == 16
    assert build(cfg.experience).num_steps(cfg.data.questions_per_iteration) >= (16 if name == "stability" else 12)
    task = build(cfg.data.task)
    shown = [task.demonstration(index) for index in range(20)]
    turns = [turn.text.split() for each in shown for turn in each.turns if turn.source is SegmentSource.POLICY]
    assert all(10 <= len(words) <= 30 for words in turns)
    longest = max(sum(len(turn.text.split()) + 2 for turn in each.turns) for each in shown)
    assert longest <= cfg.rollout.sampling.max_response_tokens
    assert cfg.rollout.sampling.max_tool_calls >= task.num_chambers
