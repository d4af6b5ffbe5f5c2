import random

import numpy as np
import torch

from aepo_lightning.checkpoints import random_states, restore_random_states


def draw():
    return torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist(), np.random.randn()


def test_generators_go_on_where_they_were(tmp_path):
    np.random.randn()  # leaves a second number in NumPy's cache
    torch.save(random_states(), tmp_path / "states.pt")
    expected = draw()
    draw()
    restore_random_states(torch.load(tmp_path / "states.pt", weights_only=True), 0, 1)
    assert draw() == expected


def test_another_number_of_ranks_gives_each_a_stream_of_its_own(tmp_path):
    states = random_states()
    found = []
    for rank in (0, 1, 0):
        restore_random_states(states, rank, 2)
        found.append(draw())
    assert found[0] == found[2] != found[1]


def test_a_run_that_does_not_use_the_gpu_of_its_machine_leaves_it_alone(monkeypatch):
    def fail():
        raise AssertionError("this sets up the GPU")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", fail)
    assert "cuda" not in random_states()[0]
