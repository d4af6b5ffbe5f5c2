"""What the product of a stage was made of: its configuration, the files that it read, the code.

A digest of each stands beside the product, and the product serves again only where they fit. Strings that say where
something is (a server, a cache) are left out of the configuration; files count by their content, under any path.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import aepo_lightning
from aepo_lightning.app.paths import PATH_KEY
from aepo_lightning.app.targets import find_targets
from aepo_lightning.tasks.paths import files_at, find_places

MadeOf = Mapping[str, str]
"""Part (`configuration`, `files`, `code`) to digest."""

_COLD_START = ("seed", "model", "coldstart", "data.task", "tools", "rollout.chat_format", "trainer.precision")
_SFT = (
    *(part for part in _COLD_START if part != "data.task"),
    "module.adapter",
    "module.mixed_precision",
)
_EVALUATION = (
    "data.task",
    "evaluation.num_samples",
    "evaluation.pass_at",
    "data.num_val_questions",
    "data.seed",
    "reward",
    "rollout.sampling",
    "rollout.scoring",
    "module.adapter",
)
_NOT_OF_THE_RESULT = ("only", "expected_rows")
"""Keys of a cold start that change nothing about it: whether the run ends with it, what a plan supposes."""
_DATA_ENDINGS = (
    ".json",
    ".jsonl",
    ".parquet",
    ".csv",
    ".tsv",
    ".txt",
    ".gz",
    ".safetensors",
    ".model",
    ".jinja",
    ".bin",
)
_WHOLE_BYTES = 1 << 28
_EDGE_BYTES = 1 << 20


def is_sft(cfg: DictConfig) -> bool:
    """Return whether the cold start of a configuration is one on conversations."""
    return cfg.coldstart.get("data") is not None


def cold_start_made_of(cfg: DictConfig) -> MadeOf:
    """Return what the cold start of a configuration is made of."""
    return _made_of(cfg, _of_cold_start(cfg))


def evaluation_made_of(cfg: DictConfig) -> MadeOf:
    """Return what the evaluation before the training is made of."""
    return _made_of(cfg, tuple(dict.fromkeys((*_of_cold_start(cfg), *_EVALUATION))))


def misfits(found: MadeOf | None, own: MadeOf) -> list[str]:
    """Return the parts in which a product differs from what would be made now; one without digests fits."""
    return [] if found is None else [part for part in own if found.get(part) != own[part]]


def _of_cold_start(cfg: DictConfig) -> Sequence[str]:
    """Return the parts of a configuration that its cold start comes from."""
    return _SFT if is_sft(cfg) else _COLD_START


def _made_of(cfg: DictConfig, sections: Sequence[str]) -> MadeOf:
    plain = {section: _plain(cfg, section) for section in sections}
    paths = [
        path
        for section, node in plain.items()
        for name in _paths_in(node, section)
        for path in _matches(name, _data_dir(cfg, section))
    ]
    return {
        "configuration": _digest(json.dumps(_without_places(plain), sort_keys=True, default=str).encode()),
        "files": _digest(b"".join(_content(path) for path in paths)),
        "code": _code(plain),
    }


def _plain(cfg: DictConfig, section: str) -> Any:
    node = OmegaConf.select(cfg, section)
    found: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if section != "coldstart":
        return found
    return {name: value for name, value in found.items() if name not in _NOT_OF_THE_RESULT}


def _data_dir(cfg: DictConfig, section: str) -> str | None:
    """Return the folder that a section names for its files."""
    found = OmegaConf.select(cfg, "coldstart.data.data_dir" if section == "coldstart" else "data.task.data_dir")
    return None if found is None else str(found)


def _without_places(node: Any, key: str = "", is_tool: bool = False) -> Any:
    """Return the values without paths, and of tools without any text but the names of their parts."""
    if isinstance(node, dict):
        return {name: _without_places(value, str(name), is_tool or key == "tools") for name, value in node.items()}
    if isinstance(node, list):
        return [_without_places(value, key, is_tool) for value in node]
    is_place = isinstance(node, str) and key != "_target_" and (is_tool or PATH_KEY.search(key))
    return None if is_place else node


def _paths_in(node: Any, key: str = "") -> Iterator[str]:
    """Yield every path in a nest of mappings and lists, in order."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _paths_in(value, str(name))
    elif isinstance(node, list):
        for value in node:
            yield from _paths_in(value, key)
    elif isinstance(node, str) and PATH_KEY.search(key):
        yield node


def _matches(name: str, data_dir: str | None) -> list[Path]:
    """Return the files that a path or a pattern stands for, looked for as a task does it.

    Of folders, only those of models count: what else lies beside questions is not read.
    """
    for place in find_places(name, data_dir):
        if (place / "config.json").is_file():
            return sorted(each for each in place.iterdir() if each.is_file() and _is_data(each))
        if matches := files_at(place, name):
            return [each for each in matches if _is_data(each)]
    return []


def _is_data(path: Path) -> bool:
    return path.name.endswith(_DATA_ENDINGS)


def _content(path: Path) -> bytes:
    """Return a digest of a file; of a very large one, of its size and its edges."""
    size, digest = path.stat().st_size, blake2b(digest_size=16)
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            while block := file.read(_EDGE_BYTES):
                digest.update(block)
        else:
            digest.update(str(size).encode() + file.read(_EDGE_BYTES))
            file.seek(-_EDGE_BYTES, os.SEEK_END)
            digest.update(file.read())
    return digest.digest()


def _code(plain: Mapping[str, Any]) -> str:
    """Return a digest of the sources of this library, and of the modules of others that the configuration names."""
    tops = {target.partition(".")[0] for target in find_targets(dict(plain))} - {"aepo_lightning"}
    files = dict.fromkeys(file for top in sorted(tops) for file in _sources_of(top))
    own = (blake2b(file.read_bytes()).digest() for file in files)
    return _digest(b"".join((aepo_lightning.__version__.encode(), _library_sources(), *own)))


def _sources_of(top: str) -> list[Path]:
    """Return the files of a module, or of a package with all that lies in it, unless it is installed."""
    spec = find_spec(top)
    if spec is None:
        return []
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    found = files or ([Path(spec.origin)] if spec.origin else [])
    return [file for file in found if file.is_file() and not {"site-packages", "dist-packages"} & {*file.parts}]


@cache
def _library_sources() -> bytes:
    """Return a digest of the sources that this process runs."""
    sources = sorted(Path(aepo_lightning.__file__).parent.rglob("*.py"))
    return blake2b(b"".join(blake2b(path.read_bytes()).digest() for path in sources)).digest()


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()
