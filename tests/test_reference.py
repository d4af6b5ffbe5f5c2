"""The page of all keys: what a key means in a file, and what is never said of it."""

import pytest

from docs.support.conf_keys import read_all


class Docstrings:
    """Stands for the docstrings of one class."""

    def argument(self, target, name):
        return {"Loss.clip": "Largest ratio.", "Loss.level": "Token or turn."}.get(f"{target}.{name}", "")


def meanings(folder):
    pytest.importorskip("griffe")
    from docs.support.meanings import Meanings

    files = read_all(folder)
    found = Meanings(files, Docstrings())
    return {(each.name, key.path): found.meaning(each, key) for each in files for key in each.keys}


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


LONG = "# @package _global_\ndefaults:\n  - override /loss: one\nsteps: 900\nloss:\n  level: turn\n"
BASE = "_target_: Loss\nclip: 0.2\nlevel: token\nseed: 1  # of the order\n"


def test_an_option_is_explained_by_what_it_builds_on_and_never_by_its_neighbour(tmp_path):
    write(
        tmp_path,
        {
            "train.yaml": "defaults:\n  - loss: _base\nsteps: 650  # optimiser steps\n",
            "loss/_base.yaml": BASE,
            "loss/one.yaml": "defaults:\n  - _base\n  - _self_\nclip: 0.3  # as its paper has it\nseed: 2\n",
            "loss/two.yaml": "defaults:\n  - _base\n  - _self_\nclip: 0.4\n",
            "experiment/long.yaml": LONG,
        },
    )
    said = meanings(tmp_path)
    assert said["one", "loss.clip"] == "Largest ratio; as its paper has it"
    assert said["two", "loss.clip"] == "Largest ratio."
    assert said["one", "loss.seed"] == "of the order"
    assert said["long", "steps"] == "optimiser steps"
    assert said["long", "loss.level"] == "Token or turn."


def test_what_a_comment_says_once_more_is_not_repeated(tmp_path):
    write(tmp_path, {"loss/_base.yaml": "_target_: Loss\nclip: 0.2  # largest ratio\n"})
    assert meanings(tmp_path) == {("_base", "loss.clip"): "Largest ratio."}


def test_the_header_of_a_file_is_no_comment_of_its_first_key(tmp_path):
    write(tmp_path, {"experiment/short.yaml": "# @package _global_\n# The main job, shorter.\nname: short\n"})
    (file,) = read_all(tmp_path)
    assert file.header == "The main job, shorter."
    assert [key.comment for key in file.keys] == [""]


def test_angle_brackets_of_a_comment_are_shown():
    pytest.importorskip("griffe")
    from docs.support.reference import _escaped

    assert _escaped("below <root>/[a] in `<b>`") == "below &lt;root>/\\[a\\] in `<b>`"


@pytest.mark.slow
def test_every_key_of_the_reference_has_a_meaning():
    pytest.importorskip("griffe")
    from docs.support import reference

    rows = [line for line in reference.pages()["configuration.md"].splitlines() if line.startswith("| `")]
    assert len(rows) > 700
    assert [row for row in rows if row.endswith("|  |") or "Argument of `aepo_lightning" in row] == []
