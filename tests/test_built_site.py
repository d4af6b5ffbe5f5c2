"""The site as `make docs` builds it: without a warning, whole without a network, searched from the disk."""

import re
import shutil

import pytest
import yaml

from tests.support.chromium import Browser, find_chromium
from tests.support.commands import run_command
from tests.support.paths import ROOT
from tests.test_site import navigation

CHROMIUM = find_chromium()
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("zensical")
    from docs.support import reference

    folder = tmp_path_factory.mktemp("site")
    listed = navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert {f"reference/{name}" for name in reference.pages()} == {page for page in listed if "/" in page}
    shutil.copytree(ROOT / "docs", folder / "docs")
    for name, text in reference.pages().items():
        (folder / "docs/reference").mkdir(exist_ok=True)
        (folder / "docs/reference" / name).write_text(text)
    settings = (ROOT / "mkdocs.yml").read_text()
    assert "paths: [.]" in settings
    copied = folder / "mkdocs.yml"
    copied.write_text(settings.replace("paths: [.]", f"paths: [{ROOT}]"))
    done = run_command("-m", "zensical", "build", "--strict", "--config-file", str(copied))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def test_docstrings_are_there_with_their_signatures_in_lines(site):
    page = (site / "reference/branching.html").read_text()
    assert "EntropyBalanced" in page
    code = re.sub(r"<[^>]+>", "", page[page.index("<pre>") :].partition("</code>")[0])
    assert "\n    gamma: float = 0.2,\n" in code


def test_pages_load_nothing_from_another_machine(site):
    for name in ("index.html", "concepts.html", "reference/branching.html"):
        loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"?(https?:[^\s\">]+)", (site / name).read_text())
        assert loaded == [], name


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: `make browser`, or set AEPO_CHROMIUM to one")
def test_a_page_that_is_opened_from_the_disk_can_be_searched(site, tmp_path):
    with Browser(CHROMIUM, tmp_path) as browser:
        browser.open(f"{site.as_uri()}/index.html", ready="document.querySelector('.md-search__button')")
        browser.wait_for("document.readyState === 'complete'")
        browser.click(".md-search__button")
        browser.wait_for("document.activeElement?.tagName === 'INPUT' || document.activeElement?.shadowRoot")
        browser.call("Input.insertText", text="penalty_per_step")
        shown = "[document, ...[...document.querySelectorAll('*')].map(each => each.shadowRoot)].filter(Boolean)"
        browser.wait_for(f"{shown}.some(each => /with_penalty/.test(each.textContent ?? each.innerHTML))")
        assert browser.log == []
        assert [url for url in browser.requests if not url.startswith(("file:", "data:", "blob:", "about:"))] == []
