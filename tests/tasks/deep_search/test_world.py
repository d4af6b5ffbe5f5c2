import hashlib
import json

import pytest

from aepo_lightning.errors import ConfigError
from aepo_lightning.tasks import DeepSearchTask, DeepSearchWorld, deep_search_pages
from aepo_lightning.tasks.deep_search.world import Thing, draw_world
from tests.support.deep_search_parts import small_world


def test_pages_and_questions_are_the_ones_that_were_first_released():
    # frozen: a change here changes every published run. Hashes of texts differ in every process of these tests.
    world = small_world()
    task = DeepSearchTask(world=world)
    said = [[page.url, page.title, page.text, page.is_listed] for page in deep_search_pages(world)]
    asked = [
        [task.solved(split, index).text, task.solved(split, index).answer]
        for split in ("train", "val")
        for index in range(20)
    ]
    digest = hashlib.sha256(json.dumps([said, asked]).encode()).hexdigest()
    assert digest[:16] == "06d7abde5c2d0b0d"


def test_another_seed_is_another_world():
    names = [{thing.name for thing in draw_world(small_world(seed)).things} for seed in (0, 1)]
    assert len(names[0] & names[1]) < 0.2 * len(names[0])  # titles of works are drawn from one list


def test_nothing_relates_the_things_of_training_and_validation():
    world = draw_world(small_world())
    by_number = {thing.number: thing for thing in world.things}
    pairs = [(by_number[number], value) for (number, _), value in world.values.items() if isinstance(value, Thing)]
    assert len(pairs) > 300
    assert all(thing.split == value.split for thing, value in pairs)


def test_names_fit_one_thing_but_for_namesakes_of_another_trade():
    world = draw_world(small_world())
    by_name = {}
    for thing in world.things:
        by_name.setdefault(thing.name, []).append(thing)
    shared = [things for things in by_name.values() if len(things) > 1]
    assert len(world.things) == 200
    assert len(shared) == 4
    assert all(len({thing.trade for thing in things}) == len(things) == 2 for things in shared)
    assert all(thing.has_namesake == (len(by_name[thing.name]) > 1) for thing in world.things)


def test_a_world_without_clutter_has_no_namesakes():
    assert not any(thing.has_namesake for thing in draw_world(small_world(clutter=0.0)).things)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_things": 100}, "num_things"),
        ({"num_things": 10_000}, "num_things"),
        ({"val_share": 0.0}, "val_share"),
        ({"val_share": float("nan")}, "val_share"),
        ({"clutter": 1.5}, "clutter"),
        ({"clutter": float("nan")}, "clutter"),
    ],
    ids=str,
)
def test_settings_without_meaning_are_refused_by_name(settings, named):
    with pytest.raises(ConfigError, match=f"`{named}` must"):
        DeepSearchWorld(**settings)
