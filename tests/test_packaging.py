import ast
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.paths import ROOT


def source_packages():
    found = {"aepo_lightning.callbacks", "aepo_lightning.conf"}
    for path in (ROOT / "aepo_lightning").rglob("*.py"):
        found.add(".".join(path.parent.relative_to(ROOT).parts))
    return found


def test_every_folder_with_code_is_listed_as_a_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(settings["tool"]["setuptools"]["packages"]) == source_packages()


def test_nothing_in_the_library_imports_a_callback():
    for path in (ROOT / "aepo_lightning").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.startswith(("aepo_lightning.callbacks", "callbacks")) for name in names), path


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt"])
def test_what_is_tested_lies_in_the_ranges_of_the_project(name):
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ranges = {asked.name: asked.specifier for asked in map(Requirement, dependencies)}
    tested = [Requirement(line) for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    assert {pin.name for pin in tested} == {"torch", "transformers"}
    for pin in tested:
        release = Version(next(iter(pin.specifier)).version)
        assert release in ranges[pin.name]
        end = "<" if name == "constraints.txt" else ">="
        (bound,) = (Version(each.version) for each in ranges[pin.name] if each.operator == end)
        after = Version(f"{release.major}.{release.minor + (end == '<')}")
        assert bound == after, "the ranges end where they are tested"


def test_whatever_make_resolves_is_held_by_constraints():
    lines = (ROOT / "Makefile").read_text().splitlines()
    installs = [line for line in lines if "$(PIP)" in line or "pip install" in line.partition(":=")[0]]
    assert len(installs) >= 4
    assert all("-c constraints" in line or "--no-deps" in line for line in installs)


@pytest.mark.slow
def test_a_wheel_holds_callbacks_and_every_yaml_file(tmp_path):
    copy = tmp_path / "copy"  # building leaves folders behind
    files = ["pyproject.toml", "README.md", "aepo_lightning", "callbacks", "conf"]
    copy.mkdir()
    for name in files:
        subprocess.run(["cp", "-r", str(ROOT / name), str(copy / name)], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), "./copy"]
    subprocess.run(command, cwd=tmp_path, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"aepo_lightning/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    expected |= {f"aepo_lightning/{path.relative_to(ROOT)}" for path in (ROOT / "callbacks").rglob("*.py")}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "aepo_lightning").rglob("*.py")}
    assert expected <= inside
