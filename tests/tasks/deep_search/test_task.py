import subprocess
import sys
from collections import Counter

import pytest

from aepo_lightning.contracts.question import DemonstrationSource, Task
from aepo_lightning.errors import ConfigError
from aepo_lightning.tasks import DeepSearchTask, DeepSearchWorld
from tests.support.deep_search_parts import small_world, task_with_tools
from tests.support.paths import ROOT

WORLD = small_world()


def test_is_a_task_and_a_demonstration_source():
    task = task_with_tools(WORLD)
    assert isinstance(task, Task)
    assert isinstance(task, DemonstrationSource)
    assert (task.num_questions("train"), task.num_questions("val")) == (None, 256)


def test_questions_are_functions_of_seed_and_index():
    one, same, other = (DeepSearchTask(world=WORLD, seed=seed) for seed in (0, 0, 1))
    asked = [[task.question(split, 3) for split in ("train", "val")] for task in (one, same, other)]
    assert asked[0] == asked[1]
    assert asked[0][0].messages != asked[2][0].messages
    assert asked[0][1] == asked[2][1]  # validation is the same for runs of all seeds


def test_questions_tell_level_proof_and_least_number_of_calls():
    task = DeepSearchTask(world=WORLD)
    question, solved = task.question("train", 0), task.solved("train", 0)
    assert question.question_id == "deep-search-train-0"
    assert question.answers == (solved.answer,)
    assert question.metadata == {
        "ability": "deep_search",
        "level": solved.level.value,
        "least_calls": len(solved.plan),
        "proof": list(solved.proof),
    }


def test_validation_has_every_level_in_turn_and_no_question_twice():
    task = DeepSearchTask(world=WORLD, val_levels=["one_hop", "two_hops", "count"], num_val_questions=60)
    asked = [task.question("val", index) for index in range(60)]
    assert len({question.messages[0].content for question in asked}) == 60
    assert Counter(question.metadata["level"] for question in asked) == {"one_hop": 20, "two_hops": 20, "count": 20}
    again = DeepSearchTask(world=WORLD, val_levels=["one_hop", "two_hops", "count"], num_val_questions=60)
    assert again.question("val", 59) == asked[59]


def test_levels_are_drawn_as_often_as_they_are_named():
    task = DeepSearchTask(world=WORLD, levels=["one_hop", "one_hop", "two_hops"])
    levels = Counter(task.question("train", index).metadata["level"] for index in range(150))
    assert levels["one_hop"] / 150 == pytest.approx(2 / 3, abs=0.1)
    assert set(levels) == {"one_hop", "two_hops"}


@pytest.mark.parametrize("split, index", [("val", 256), ("val", -1), ("train", -1)], ids=str)
def test_positions_outside_a_split_are_refused(split, index):
    with pytest.raises(IndexError, match="`index` must be a position"):
        DeepSearchTask(world=WORLD).question(split, index)


def test_demonstrations_have_no_negative_positions():
    with pytest.raises(IndexError, match="`index` must be a position"):
        task_with_tools(WORLD).demonstration(-1)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"levels": []}, "levels"),
        ({"levels": "one_hop"}, "levels"),
        ({"levels": ["five_hops"]}, "levels"),
        ({"val_levels": ["five_hops"]}, "val_levels"),
        ({"depth": "deep"}, "depth"),
        ({"call_style": "xml"}, "call_style"),
        ({"num_val_questions": -1}, "num_val_questions"),
        ({"num_flawless_demonstrations": -1}, "num_flawless_demonstrations"),
    ],
    ids=str,
)
def test_settings_without_meaning_are_refused_by_name(settings, named):
    with pytest.raises(ConfigError, match=f"`{named}` must be"):
        DeepSearchTask(world=WORLD, **settings)


def test_more_validation_questions_than_there_are_is_refused():
    world = DeepSearchWorld(num_things=100, val_share=0.5)  # five guilds for validation
    task = DeepSearchTask(world=world, levels=["count"], depth="snippet", num_val_questions=30)
    with pytest.raises(ConfigError, match="`num_val_questions` must be at most what the world has"):
        task.question("val", 29)


def test_what_reads_parquet_files_is_not_needed_to_search():
    # A machine without a network may lack pyarrow, which is large.
    program = (
        "import sys; sys.modules.update(pyarrow=None); "
        "from aepo_lightning.tasks import DeepSearchTask, DeepSearchWorld, deep_search_pages; "
        "from aepo_lightning.tools import IndexSearch, PageIndex, ToolRuntime; "
        "print(IndexSearch(index=PageIndex(deep_search_pages(DeepSearchWorld(num_things=200)))).spec.name)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("search\n", 0), done.stderr
