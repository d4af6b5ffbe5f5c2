"""What `docs/add_an_algorithm.md` shows works as written: the part, its test, its files, the same value in Python."""

import re
import sys

import pytest

from aepo_lightning import GRPO
from aepo_lightning.app.build import build
from aepo_lightning.app.config_dir import search_path
from tests.support.composed import composed
from tests.support.paths import ROOT

BLOCK = re.compile(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", re.DOTALL)
FILES = dict(BLOCK.findall((ROOT / "docs/add_an_algorithm.md").read_text()))


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def test_the_guide_is_four_short_files():
    assert [name.rpartition("/")[2] for name in FILES] == ["topr.py", "test_topr.py", "topr.yaml", "topr.yaml"]
    others = [content for name, content in FILES.items() if "test" not in name]
    assert sum(len(content.splitlines()) for content in others) < 40


@pytest.mark.usefixtures("project")
def test_the_test_of_the_guide_passes():
    names = {}
    exec(compile(FILES["tests/test_topr.py"], "test_topr.py", "exec"), names)
    names["test_gradients_are_those_of_the_paper"]()


def test_the_configuration_of_the_guide_is_the_value_in_python(project):
    from my_package.topr import Topr

    cfg = composed(*search_path(str(project / "my_conf")), "algorithm=topr")
    assert build(cfg.algorithm) == GRPO(name="topr", objective=Topr())
