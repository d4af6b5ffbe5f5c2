import ast
import subprocess
import sys
import tomllib
import zipfile

import pytest

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
