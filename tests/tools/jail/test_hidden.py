"""What the mounts show of this library and of the folders in which people work: nothing."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from dataclasses import replace
from pathlib import Path

import pytest

from aepo_lightning.tools.jail import PoolSettings, hidden
from aepo_lightning.tools.jail.bubblewrap import (
    Interpreter,
    build_command,
    find_bubblewrap,
    find_interpreter,
    library_places,
)
from aepo_lightning.tools.jail.hidden import cover_private_folders, places_inside
from aepo_lightning.tools.jail.self_test import self_test
from aepo_lightning.tools.jail.worker import Worker, WorkerError
from tests.support.paths import ROOT
from tests.tools.jail.parts import needs_bubblewrap


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder of packages that holds this library and another one."""
    site = tmp_path / "venv/lib/site-packages"
    for folder in ("aepo_lightning/tools", "aepo_lightning-0.1.0.dist-info", "other"):
        (site / folder).mkdir(parents=True)
        (site / folder / "__init__.py").write_text("secret = 1")
    (site / "aepo_lightning/__init__.py").write_text("secret = 1")
    monkeypatch.setattr(hidden, "library_folder", lambda: str(site / "aepo_lightning"))
    return site


def covered(words):
    return [words[place + 1] for place, word in enumerate(words) if word == "--tmpfs"]


def test_an_installed_library_is_covered_where_it_appears(installed):
    words = cover_private_folders({str(installed): "/jail/site/0", "/usr": "/usr"}, [str(installed)])
    assert covered(words) == ["/jail/site/0/aepo_lightning", "/jail/site/0/aepo_lightning-0.1.0.dist-info"]
    assert words[:5] == ["--perms", "0000", "--tmpfs", "/jail/site/0/aepo_lightning", "--remount-ro"]
    assert cover_private_folders({"/usr": "/usr"}, [str(installed)]) == []


def test_a_copy_in_another_folder_of_packages_is_covered_too(installed, tmp_path):
    (tmp_path / "more/site-packages/aepo_lightning").mkdir(parents=True)
    mounts = {str(tmp_path / "more/site-packages"): "/more"}
    assert covered(cover_private_folders(mounts, [])) == ["/more/aepo_lightning"]


def test_a_place_is_found_through_links(tmp_path):
    (tmp_path / "real/lib").mkdir(parents=True)
    os.symlink(tmp_path / "real", tmp_path / "link")
    mounts = {str(tmp_path / "link"): "/there", "/nowhere": "/nowhere"}
    assert places_inside(str(tmp_path / "real/lib"), mounts) == ["/there/lib"]
    assert places_inside(str(tmp_path), mounts) == []


def test_a_checkout_and_the_working_directory_are_covered_but_for_the_packages_in_them(tmp_path, monkeypatch):
    project, site = tmp_path / "src/app", tmp_path / "src/app/.venv/lib/site-packages"
    for folder in (site, project / "aepo_lightning", project / "runs"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(hidden, "library_folder", lambda: str(project / "aepo_lightning"))
    monkeypatch.chdir(project / "runs")
    words = cover_private_folders({str(tmp_path): "/usr"}, [str(site)])
    assert covered(words) == ["/usr/src/app", "/usr/src/app/aepo_lightning", "/usr/src/app/runs"]
    shown = ["--perms", "0755", "--dir", "/usr/src/app/.venv/lib", "--ro-bind", str(site)]
    start = words.index("/usr/src/app/.venv/lib") - 3
    assert words[start : start + 7] == [*shown, "/usr/src/app/.venv/lib/site-packages"]
    assert words[1] == "0711"


def test_a_working_directory_that_is_gone_or_holds_the_system_covers_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir("/usr")
    assert cover_private_folders({"/usr": "/usr"}, []) == []
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert cover_private_folders({"/usr": "/usr"}, []) == []


def test_the_self_test_looks_where_the_library_would_appear(installed, monkeypatch):
    monkeypatch.setattr("aepo_lightning.tools.jail.bubblewrap.library_folder", hidden.library_folder)
    moved = Interpreter(executable="/opt/a/bin/python", prefix="/opt/a", site_paths=(str(installed),))
    at_home = installed / "aepo_lightning"
    assert set(library_places(moved)) == {str(at_home), moved.inside(str(installed)) + "/aepo_lightning"}


@needs_bubblewrap
@pytest.mark.parametrize("is_hidden", [True, False], ids=["hidden", "shown"])
def test_a_worker_whose_packages_hold_the_library_passes_its_self_test_if_it_is_hidden(
    installed, monkeypatch, is_hidden
):
    if not is_hidden:
        monkeypatch.setattr("aepo_lightning.tools.jail.bubblewrap.cover_private_folders", lambda *_: [])
    settings = PoolSettings(preload=())
    found = find_interpreter(())
    interpreter = replace(found, site_paths=(*found.site_paths, str(installed)))
    assert "aepo_lightning" in " ".join(library_places(interpreter))
    worker = Worker(find_bubblewrap(), interpreter, settings)
    try:
        if is_hidden:
            assert self_test(worker, settings) > 20
        else:
            with pytest.raises(WorkerError, match="found holes: read_this_library"):
                self_test(worker, settings)
    finally:
        worker.close()


def test_the_covers_come_after_the_mounts_and_before_the_root_is_closed(installed):
    interpreter = Interpreter(executable="/opt/a/bin/python", prefix="/opt/a", site_paths=(str(installed),))
    words = build_command(find_bubblewrap() or _any(), interpreter, is_root=True, descriptors=(3, 4), work_mb=64)
    place = interpreter.inside(str(installed))
    assert words.index(place) < words.index(f"{place}/aepo_lightning") < len(words) - 1 - words[::-1].index("/")


def _any():
    from tests.tools.jail.test_walls import INSTALLED

    return INSTALLED


PROGRAM = """
import asyncio, importlib.util, json, os, sys
import aepo_lightning
from aepo_lightning.tools.jail import PythonPool
CODE = '''
import json, os, sys
seen = []
for folder in (*sys.path, LIBRARY + "/.."):
    for name in ("aepo_lightning/__init__.py", "aepo_lightning/errors.py", "aepo_lightning-0.1.0.dist-info/RECORD"):
        try:
            seen.append(open(f"{folder}/{name}").read()[:20])
        except OSError:
            pass
try:
    import aepo_lightning
    seen.append("imported")
except ImportError:
    pass
import numpy
print(json.dumps([seen, int(numpy.arange(4).sum())]))
'''
async def main():
    pool = PythonPool(num_workers=1, preload=("numpy",), isolation="bubblewrap")
    library = os.path.dirname(aepo_lightning.__file__)
    done = await pool.run(f"LIBRARY = {library!r}\\n" + CODE)
    pool.close()
    print(json.dumps([library, done.stdout, done.stderr]))
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"  # building leaves folders behind
    for name in ("aepo_lightning", "callbacks", "conf"):
        shutil.copytree(ROOT / name, copy / name)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), "./copy"]
    subprocess.run(command, cwd=folder, check=True)
    return next(folder.glob("*.whl"))


@needs_bubblewrap
@pytest.mark.slow
@pytest.mark.parametrize(
    "above, has_links", [("/tmp", True), ("/var/tmp", True), ("/var/tmp", False)], ids=["tmp", "elsewhere", "copies"]
)
def test_an_installed_wheel_has_a_jail_that_does_not_show_it(wheel, above, has_links):
    with tempfile.TemporaryDirectory(dir=above) as folder:
        os.chmod(folder, 0o755)
        venv.create(f"{folder}/venv", symlinks=has_links)
        python = f"{folder}/venv/bin/python"
        subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", str(wheel)],
                       check=True)  # fmt: skip
        # All that it depends on is where these tests have it.
        (site,) = Path(folder, "venv/lib").glob("*/site-packages")
        others = [path for path in sys.path if path.endswith("-packages")]
        (site / "others.pth").write_text("".join(f"{path}\n" for path in others))
        done = subprocess.run([python, "-I", "-c", PROGRAM], capture_output=True, text=True, cwd=folder, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        library, stdout, stderr = json.loads(done.stdout)
        assert library == str(site / "aepo_lightning")
        assert json.loads(stdout or "null") == [[], 6], stderr
