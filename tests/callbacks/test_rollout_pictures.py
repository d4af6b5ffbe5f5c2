import numpy as np
import pytest

from aepo_lightning.callbacks import RolloutPictures, rollout_pictures
from aepo_lightning.errors import ConfigError

NAMES = ["tree_1", "tree_2", "entropy_1", "entropy_by_turn", "histograms"]


def test_pictures_are_logged_at_their_interval_and_at_the_end(make_run, monkeypatch):
    monkeypatch.setattr(rollout_pictures, "rasterise", lambda _: np.zeros((1, 1, 3), dtype=np.uint8))
    watched = make_run([RolloutPictures(every_n_epochs=2)], max_epochs=2).fit()
    experiment = watched.logger.experiment
    # Two optimiser steps an iteration: the pictures of the first, then those of the last, which is not due otherwise.
    expected = [(f"pictures/{name}", step) for step in (2, 4) for name in NAMES]
    assert [(name, step) for name, _, step in experiment.pictures] == expected
    [(name, table, step), _] = experiment.texts
    assert (name, step) == ("pictures/questions", 2)
    assert len(table.splitlines()) == 2 + 2
    assert [(name, len(values) > 50, step) for name, values, step in experiment.histograms] == [
        ("pictures/token_entropies", True, step) for step in (2, 4)
    ]


def test_the_heat_map_goes_on_in_a_resumed_run():
    pictures, resumed = RolloutPictures(), RolloutPictures()
    pictures.turns = {0: [0.5], 1: [0.25, 1.0]}
    resumed.load_state_dict(pictures.state_dict())
    assert resumed.turns == pictures.turns


def test_numbers_that_draw_nothing_are_refused():
    with pytest.raises(ConfigError, match="`num_trees` must be at least 1, but got 0"):
        RolloutPictures(num_trees=0)
