"""What the update made of each token is what `aepo-explain` says, and is kept beside the trees."""

from dataclasses import replace

import pytest

from aepo_lightning.app.explained_token import explain_trajectory
from aepo_lightning.app.view import updates
from aepo_lightning.app.view.pages import Shown, make_page
from aepo_lightning.app.view.updates import key_of, read_updates, relive_updates, updates_of, updates_path
from aepo_lightning.errors import ConfigError
from aepo_lightning.objectives import ClippedSurrogate
from tests.app.test_explain import TREES, step
from tests.support.viewed import data_of, opened

NARROW = {"clip_range_low": 3e-3, "clip_range_high": 4e-3}


@pytest.fixture(scope="module")
def relived():
    """A step with tokens beyond both bounds."""
    return step()


@pytest.mark.parametrize("level", ["token", "turn", "sequence"])
def test_the_numbers_of_every_token_are_those_of_aepo_explain(relived, level):
    if level != "token":
        relived = step(objective=ClippedSurrogate(ratio_level=level, preserve_high=1.0, **NARROW))
    found, seen = updates_of(relived), set()
    for group, tree in enumerate(TREES):
        for index, leaf in enumerate(tree.leaves):
            told, own = explain_trajectory(relived, tree, leaf), found[group].of(tree, index)
            tokens = told.tokens
            assert own.gap == pytest.approx([token.old_logprob - token.sampler_logprob for token in tokens], abs=2e-6)
            assert own.ratio == pytest.approx([token.importance_ratio for token in tokens], abs=2e-6)
            assert own.advantage == pytest.approx([token.advantage for token in tokens], abs=2e-6)
            states = [found[group].states[place] for place in own.clip]
            assert states == [token.clip_state for token in tokens]
            assert found[group].loss == pytest.approx(told.step_loss, rel=1e-5, abs=1e-7)
            seen |= set(states)
    assert {"beyond the upper bound, gradient kept", "beyond the lower bound, no gradient"} <= seen


def steps_of(monkeypatch, *steps):
    """Make these the steps of any iteration; an error is raised in its turn."""

    def relive_iteration(folder, iteration, allowed):
        assert iteration == 3
        for each in steps:
            if isinstance(each, Exception):
                raise each
            yield each

    monkeypatch.setattr(updates, "relive_iteration", relive_iteration)


def test_what_was_made_again_is_kept_even_if_it_is_not_all(relived, monkeypatch, tmp_path):
    steps_of(monkeypatch, relived, ConfigError("No checkpoint."))
    done = relive_updates(tmp_path, "train-00003")
    assert (done.num_steps, done.num_trees, done.problem) == (1, 2, "No checkpoint.")
    path = updates_path(tmp_path, "train-00003")
    found = read_updates(path)
    assert found == {key_of(tree): each for tree, each in zip(TREES, updates_of(relived).values(), strict=True)}
    path.write_text(path.read_text()[:-40] + "\n")
    assert list(read_updates(path)) == [key_of(TREES[0])]
    steps_of(monkeypatch, ConfigError("No weights."))
    with pytest.raises(ConfigError, match="No weights"):
        relive_updates(tmp_path, "train-00003")
    assert read_updates(path), "what was there before stays"


def test_a_page_has_what_the_update_made_of_its_trees_and_of_no_others(relived, tmp_path):
    found = {key_of(TREES[0]): updates_of(relived)[0]}
    other = replace(TREES[0], seed=7)
    data = data_of(make_page(opened(tmp_path), "x", [TREES[0], TREES[1], other], Shown(updates=found)))
    assert not {"gap", "ratio", "clip", "advantage"} & set(data["head"]["absences"])
    own, *others = data["piece-0"]
    assert [tree["update"] for tree in others] == [None, None]
    assert {leaf["update"] for tree in others for leaf in tree["leaves"]} == {None}
    update = found[key_of(TREES[0])]
    assert own["update"]["states"] == update.states
    for index, leaf in enumerate(own["leaves"]):
        assert leaf["update"]["ratio"] == pytest.approx(update.leaves[index].ratio, abs=1e-5)
        assert leaf["update"]["gap"] == pytest.approx([gap * 1e4 for gap in update.leaves[index].gap], abs=0.51)
        assert leaf["update"]["clip"] == update.leaves[index].clip
    longer = replace(update.leaves[0], gap=[*update.leaves[0].gap, 0.0])
    assert replace(update, leaves={0: longer}).of(TREES[0], 0) is None
