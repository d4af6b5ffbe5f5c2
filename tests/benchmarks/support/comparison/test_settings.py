"""What is compared: the factorial's cells, the presets, the order of the runs."""

from dataclasses import replace
from functools import cache

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from aepo_lightning.app.build import build
from benchmarks.support.comparison.commands import cold_start_name, configuration_digest, configuration_of, words_of
from benchmarks.support.comparison.settings import (
    BEDS,
    CONFIG_MODULE,
    FIRST,
    NO_END,
    PILOT_SEED,
    TRIAL,
    Bed,
    Job,
    algorithms,
    cells,
    jobs,
    num_seeds,
)
from tests.support.paths import ROOT

BED = Bed(experiment="quickstart", num_generated_tokens=100, num_answered_calls=10)
PARTS = {"M": "allocator", "P": "branch_policy", "S": "objective", "A": "shaping"}


@cache
def algorithm_of(name):
    """What the words of an algorithm make of its preset, composed alone because that is quick."""
    preset, *others = algorithms()[name]
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        return compose(preset.replace("=", "/"), overrides=others).algorithm


def plain(node):
    found = OmegaConf.to_container(node, resolve=True)
    del found["name"]
    return found


def check_cell(on):
    """That a cell differs from AEPO in the switches that are off, and that these are as they are in ARPO."""
    cell, whole, arpo = (plain(algorithm_of(name)) for name in (cells()[on], "aepo", "arpo"))
    off = {part for letter, part in PARTS.items() if letter not in on}
    assert {part for part in whole if cell[part] != whole[part]} == off
    assert {part: cell[part] for part in off} == {part: arpo[part] for part in off}
    assert build(algorithm_of(cells()[on])).name == cells()[on]


@pytest.mark.parametrize("on", ["PSA", "MSA", "MPA", "MPS", ""])
def test_a_cell_differs_from_aepo_in_the_switches_that_are_off(on):
    check_cell(on)


@pytest.mark.slow
def test_so_do_all_cells():
    assert len(cells()) == 16
    for on in cells():
        check_cell(on)


def test_nothing_on_is_arpo_and_each_part_is_one_switch():
    whole, arpo = plain(algorithm_of("aepo")), plain(algorithm_of("arpo"))
    assert whole == arpo | {part: whole[part] for part in PARTS.values()}
    without = {letter: plain(algorithm_of("aepo-" + "MPSA".replace(letter, ""))) for letter in PARTS}
    assert without["M"]["allocator"] == {"_target_": "aepo_lightning.budgets.RootShare", "share": 0.5}
    assert without["P"]["branch_policy"] == whole["branch_policy"] | {"penalty_per_step": 0.0}
    assert without["S"]["objective"] == whole["objective"] | {"preserve_high": 0.0}
    assert without["A"]["shaping"] is None


def test_every_preset_is_compared():
    presets = {path.stem for path in (ROOT / "conf/algorithm").glob("[!_]*.yaml")}
    assert {*algorithms()} == presets | {*cells().values()}


def test_seeds_come_first_and_important_algorithms_before_others():
    order = jobs(["a", "b"], list(algorithms()))
    assert [job.seed for job in order] == sorted(job.seed for job in order)
    assert order[:2] == [Job("a", "aepo", 0), Job("b", "aepo", 0)]
    assert {job.algorithm for job in order if job.seed == 9} == {*cells().values(), *FIRST}
    assert sum(job.algorithm == "gspo" for job in order) == 2 * num_seeds("gspo") == 10
    assert {job.seed for job in jobs(["a"], ["aepo", "gspo"], most_seeds=2)} == {0, 1}


@pytest.mark.slow
def test_a_pilot_ends_by_its_iterations_and_has_a_seed_of_its_own():
    cfg = configuration_of(words_of(Job("bed", "grpo", PILOT_SEED), TRIAL["quickstart"].for_pilot(3)))
    assert (cfg.trainer.max_epochs, cfg.trainer.check_val_every_n_epoch, cfg.data.num_val_questions) == (3, 3, 8)
    assert cfg.callbacks.sample_budget.num_generated_tokens == NO_END
    assert PILOT_SEED not in {job.seed for job in jobs([*BEDS], [*algorithms()])}


@pytest.mark.slow
def test_a_cell_is_composed_in_a_run_as_it_is_alone():
    found = configuration_of(words_of(Job("bed", "aepo-PA", 0), BED)).algorithm
    assert plain(found) == plain(algorithm_of("aepo-PA"))


@pytest.mark.slow
def test_a_result_and_a_cold_start_are_known_by_what_they_are_made_of():
    other = Bed(experiment="quickstart", num_generated_tokens=200, num_answered_calls=10)
    assert configuration_digest("bed", BED, "aepo") != configuration_digest("bed", other, "aepo")
    assert configuration_digest("bed", BED, "aepo") != configuration_digest("bed", BED, "aepo-MPS")
    assert cold_start_name("bed", BED, 0) == cold_start_name("bed", other, 0) != cold_start_name("bed", BED, 1)
    smaller = Bed(
        experiment="quickstart", num_generated_tokens=100, num_answered_calls=10, words=("coldstart.num_steps=3",)
    )
    assert cold_start_name("bed", BED, 0) != cold_start_name("bed", smaller, 0)
    faster = replace(BED, words=("algorithm.branch_policy.rate=0.75",))
    assert cold_start_name("bed", BED, 0) == cold_start_name("bed", faster, 0)
    assert configuration_digest("bed", BED, "random_branching") != configuration_digest(
        "bed", faster, "random_branching"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", BEDS)
def test_every_bed_is_an_experiment(name):
    assert configuration_of(words_of(Job(name, "aepo", 0), BEDS[name])).name == BEDS[name].experiment
