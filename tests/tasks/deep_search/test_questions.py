"""What is asked against a reader that knows nothing but the words of pages and questions."""

import re
from collections import Counter

import pytest

from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.reward import RewardInput
from aepo_lightning.rewards import PaperReward
from aepo_lightning.tasks import DeepSearchTask, DeepSearchWorld, deep_search_pages
from aepo_lightning.tasks.deep_search.pages import write_pages
from aepo_lightning.tasks.deep_search.questions import Level
from aepo_lightning.tasks.deep_search.world import draw_world
from tests.support.deep_search_parts import read_all, small_world, tools_of
from tests.support.deep_search_reader import answer
from tests.support.deep_search_shortest import Tries, all_names

TASK = DeepSearchTask(world=small_world())


def drawn(count, split="train", task=TASK):
    return [task.solved(split, index) for index in range(count)]


@pytest.fixture(scope="module")
def thousand():
    return drawn(1000)


def test_a_reader_of_the_pages_gives_the_answers_of_1000_questions(thousand):
    library = read_all(TASK.world)
    wrong = [solved.text for solved in thousand if answer(solved.text, library) != solved.answer]
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_reader_of_the_pages_gives_the_answers_in_other_worlds(seed):
    task = DeepSearchTask(world=DeepSearchWorld(seed=seed + 10), num_val_questions=500)
    library = read_all(task.world)
    asked = [*drawn(2000, "train", task), *drawn(500, "val", task)]
    assert [solved.text for solved in asked if answer(solved.text, library) != solved.answer] == []


def shorter_ways(seed, count, most):
    """Questions with a plan of at most so many calls, and what is found below and at its length."""
    world = small_world(seed)
    tries = Tries(*tools_of(world), all_names(deep_search_pages(world)))
    asked = [each for each in drawn(count, "train", DeepSearchTask(world=world)) if len(each.plan) <= most]
    for solved in asked:
        found = tries.least(solved.text, solved.answer, len(solved.plan) - 1)
        assert found is None, f"{solved.text} needs {found} calls"
        if len(solved.plan) < most:
            assert tries.least(solved.text, solved.answer, len(solved.plan)) == len(solved.plan), solved.text
    return asked


def test_no_way_is_shorter_than_the_plan():
    asked = shorter_ways(0, 40, 4)
    assert {len(solved.plan) for solved in asked} == {1, 2, 3, 4}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_no_way_is_shorter_than_the_plan_in_other_worlds(seed):
    asked = shorter_ways(seed, 400, 5)
    assert {solved.level for solved in asked} == set(Level)


def test_a_search_names_nothing_that_comes_after_the_next_thing(thousand):
    search = tools_of(TASK.world)[0].index.search
    chains = [each for each in thousand if each.level not in (Level.COMPARISON, Level.COUNT)]
    for solved in chains:
        names = [*(step.argument for step in solved.plan if step.tool == "search"), solved.answer]
        for position, name in enumerate(names[:-2]):
            shown = set(re.findall(r"\w+", " ".join(hit.snippet for hit in search(name, 3))))
            later = {word for other in names[position + 2 :] for word in other.split()} - {"The"}
            assert not shown & later, solved.text


def test_mistakes_are_wrong_and_the_two_things_of_a_comparison_differ_in_what_is_asked(thousand):
    assert all(solved.mistakes and solved.answer not in solved.mistakes for solved in thousand)


def test_no_answer_stands_in_its_question(thousand):
    for solved in thousand:
        said = set(re.findall(r"\w+", solved.text.lower()))
        assert not said & set(re.findall(r"\w+", solved.answer.lower())) - {"the"}, solved.text


def test_the_most_frequent_answer_is_worth_little(thousand):
    ((_, count),) = Counter(solved.answer for solved in thousand).most_common(1)
    assert count / 1000 < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("level", Level)
@pytest.mark.parametrize("depth", ["snippet", "linked"])
def test_the_most_frequent_answer_earns_little_at_each_level(level, depth):
    task = DeepSearchTask(levels=[level], depth=depth)
    asked = drawn(300, "train", task)
    common = [guess for guess, _ in Counter(solved.answer for solved in asked).most_common(5)]
    reward = PaperReward()
    for guess in common:
        said = f"<think> a guess </think> <answer> \\boxed{{{guess}}} </answer>"
        earned = [
            reward.score(
                RewardInput(question=Question(question_id="q", messages=(), answers=(each.answer,)), response_text=said)
            )
            for each in asked
        ]
        assert sum(output.reward for output in earned) / len(earned) < 0.05, guess


def test_proofs_are_pages_that_exist_and_plans_open_what_is_not_listed(thousand):
    pages = write_pages(TASK.world).by_url
    for solved in thousand:
        assert set(solved.proof) <= set(pages)
        opened = {step.argument for step in solved.plan if step.tool == "browse"}
        assert {url for url in solved.proof if not pages[url].is_listed} <= opened


def test_counts_are_sums_of_what_is_told(thousand):
    counts = [solved for solved in thousand if solved.level is Level.COUNT]
    assert len(counts) > 20
    assert all(str(sum(solved.terms)) == solved.answer for solved in counts)
    assert {len(solved.terms) for solved in counts} >= {2, 3, 4}


@pytest.mark.parametrize("depth, hosts", [("snippet", 1), ("page", 2), ("linked", 3)], ids=str)
def test_the_depth_bounds_the_calls_of_one_hop(depth, hosts):
    lengths = {
        len(solved.plan)
        for solved in drawn(200, "train", DeepSearchTask(world=TASK.world, levels=["one_hop"], depth=depth))
    }
    assert lengths == set(range(1, hosts + 1))


def test_every_kind_of_thing_is_asked_about(thousand):
    kinds = {thing.kind for thing in draw_world(TASK.world).things}
    titles = {page.url: page.title for page in deep_search_pages(TASK.world)}
    by_name = {thing.name: thing.kind for thing in draw_world(TASK.world).things}
    assert {by_name.get(titles[url]) for solved in thousand for url in solved.proof} >= kinds
