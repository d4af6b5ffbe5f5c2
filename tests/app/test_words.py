"""Words of a shell reach the configuration as they were written."""

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from aepo_lightning.app.overrides import single_jobs
from aepo_lightning.app.words import parse, plain_words, quoted

PATHS = [
    "runs/epoch=3-step=10.ckpt",
    "/data/Läufe/中文",
    "my runs/a b",
    "runs (old)/x",
    "007",
    "2024",
    "1e3",
    "true",
    "it's/here",
    'say "x"',
    "a\\b",
    "a\\'b",
    "end\\",
    "~/runs",
    "$HOME/runs",
    "../x",
    "a,b",
    "a#b",
    "[x]y",
]


@pytest.mark.parametrize("path", [each for each in PATHS if each not in ("a,b", "[x]y")])
@pytest.mark.parametrize("key", ["run_dir", "+data.task.path", "name"])
def test_a_path_is_read_as_it_was_written(path, key):
    (word,) = plain_words([f"{key}={path}"])
    assert str(parse(word).value()).strip("'") == path or parse(word).value() == path
    assert plain_words([word]) == [word]


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["data.task.path=[ä.jsonl, b=c.jsonl]"], ["ä.jsonl", "b=c.jsonl"]),
        (["data.task.path=[ä.jsonl,'b.jsonl']"], ["ä.jsonl", "b.jsonl"]),
        (["data.task.path=ä,b.jsonl"], "ä,b.jsonl"),
    ],
    ids=str,
)
def test_lists_of_paths_are_read_as_they_were_written(words, values):
    assert parse(*plain_words(words)).value() == values


def test_paths_of_a_sweep_are_one_value_each():
    (word, _) = plain_words(["-m", "model.name_or_path=modelle/ä,b=c"])
    assert list(parse(word).sweep_string_iterator()) == ["'modelle/ä'", "'b=c'"]


@pytest.mark.parametrize("path", PATHS)
def test_quotes_keep_any_text(path):
    assert parse(f"run_dir={quoted(path)}").value() == path


@pytest.mark.parametrize(
    "word",
    [
        "run_dir=null",
        "run_dir=${output_root}/x",
        "data.task.path=[a.jsonl,b.jsonl]",
        "data.task.path=a.jsonl,b.jsonl",
        "data.task.path='a b'",
        "seed=7",
        "trainer.max_epochs=1e3",
        "--config-dir=007",
        "run_dir=",
        "data.task.path=[broken",
        "~run_dir",
    ],
)
def test_what_means_something_to_hydra_is_left_alone(word):
    assert plain_words([word]) == [word]


@pytest.fixture
def loader():
    with initialize_config_module("aepo_lightning.conf", version_base="1.3"):
        compose("train")
        yield GlobalHydra.instance().config_loader()


@pytest.mark.parametrize(
    ("word", "some"),
    [
        ("algorithm=glob(*)", {"aepo", "grpo"}),
        ("+experiment=glob(*)", {"stability"}),
        ("algorithm=glob([a*,g*],exclude=aepo*)", {"arpo", "grpo", "gppo", "gspo"}),
    ],
)
def test_a_glob_takes_no_bases(loader, word, some):
    jobs = [job[0].partition("=")[2] for job in single_jobs(plain_words([word]), loader)]
    assert some <= set(jobs)
    assert not any(each.startswith("_") for each in jobs)


def test_bases_that_are_asked_for_are_taken(loader):
    assert plain_words(["algorithm=glob(_*)"]) == ["algorithm=glob(_*)"]


def test_flags_stand_where_people_put_them():
    words = ["seed=1", "-m", "name=a,b", "--config-dir", "mine", "~callbacks"]
    assert plain_words(words) == ["seed=1", "name=a,b", "~callbacks", "-m", "--config-dir", "mine"]
