"""Published weights on their way to servers: files that the servers read, and vLLM's update path around them."""

import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from aepo_lightning.engines.vllm_server.http import EndpointError, ServerClient
from aepo_lightning.errors import EngineError

READ_CHECK = "aepo_check_file"
"""Method of `extension.Extension` that tells whether a worker can read a file."""
_MEMORY = Path("/dev/shm")
_EXCERPT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """One set of weights, ready to be read."""

    name: str
    """Unique among all publications; servers report it with every answer."""
    paths: tuple[str, ...]
    adapter: str = ""
    """A file of `adapters.packed_updates`, merged into the weights of `paths` by whoever reads them."""


class PublicationFiles:
    """The files of the newest publication, in a folder of their own."""

    def __init__(self, parent: str | None, chunk_bytes: int) -> None:
        """Keep the settings; the folder is made with the first file.

        Args:
            parent: A folder that all servers can read. None: this machine's memory, for servers on this machine.
            chunk_bytes: Size at which a file is closed and the next begun.
        """
        self._parent = parent
        self._chunk_bytes = chunk_bytes
        self._remove: Callable[[], None] = lambda: None

    def write(self, weights: Iterable[tuple[str, Tensor]], name: str, *, whole: bool = False) -> Publication:
        """Replace the files of the last publication.

        Args:
            weights: What to write.
            name: Of the publication.
            whole: Write one file, whatever its size.

        Raises:
            EngineError: If the folder cannot be written.
        """
        self.clear()
        try:
            folder = self._make_folder()
            # Also when this object is collected and when the process ends: a forgotten folder would fill the memory.
            self._remove = weakref.finalize(self, _remove_folder, folder, os.getpid())
            paths = []
            for number, chunk in enumerate(_chunks(weights, None if whole else self._chunk_bytes)):
                path = folder / f"{number:05d}.safetensors"
                save_file(chunk, path)
                paths.append(str(path))
        except OSError as error:
            raise EngineError(
                f"Weights could not be written below {self._parent or _MEMORY}: {error}. Make room, or point "
                "`weights_dir` to another folder that the servers can read."
            ) from error
        return Publication(name=name, paths=tuple(paths))

    def clear(self) -> None:
        """Delete the files."""
        self._remove()

    def _make_folder(self) -> Path:
        if self._parent is not None:
            Path(self._parent).mkdir(parents=True, exist_ok=True)
            return Path(mkdtemp(prefix="aepo-weights-", dir=Path(self._parent).resolve()))
        return Path(mkdtemp(prefix="aepo-weights-", dir=_MEMORY if _MEMORY.is_dir() else None))


def _remove_folder(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a process that was forked off
        shutil.rmtree(folder, ignore_errors=True)


async def push(client: ServerClient, publication: Publication, timeout_s: float) -> None:
    """Give one server the weights of a publication; it holds its requests back meanwhile.

    Raises:
        UntouchedError: If the server cannot read the files; it still has the weights it had.
        EndpointError: If a step failed; what the server has now is unknown.
    """
    for path in filter(None, (publication.paths[0], publication.adapter)):
        await _check_readable(client, path)

    async def step(path: str, body: dict[str, Any] | None = None) -> Any:
        return await client.post(path, body, timeout_s)

    await step("/pause?mode=abort&clear_cache=true")
    await step("/init_weight_transfer_engine", {"init_info": {}})
    try:
        await step("/start_weight_update")
    except EndpointError:  # an update that broke off is still open
        await step("/finish_weight_update", {})
        await step("/start_weight_update")
    for path in publication.paths:
        await step("/update_weights", {"update_info": {"path": path, "adapter": publication.adapter}})
    await step("/finish_weight_update", {"weight_version": publication.name})
    if not (await step("/reset_prefix_cache")).get("success"):
        raise EndpointError("kept cached prefixes of older weights")
    await step("/resume")


class UntouchedError(EndpointError):
    """An update that failed before anything was changed."""


async def _check_readable(client: ServerClient, path: str) -> None:
    try:
        reply = await client.post("/collective_rpc", {"method": READ_CHECK, "args": [path]})
    except EndpointError as error:
        raise UntouchedError(str(error), error.fault) from error
    results = reply.get("results")
    if not results:
        raise UntouchedError(f"did not say whether it can read published weights: {json.dumps(reply)[:_EXCERPT]}")
    problems = [result["problem"] for result in results if result["problem"]]
    if problems:
        raise UntouchedError(
            f"cannot read published weights: {json.dumps(problems[0])}. Set `weights_dir` to a folder that the "
            "trainer and all servers share"
        )


def _chunks(weights: Iterable[tuple[str, Tensor]], chunk_bytes: int | None) -> Iterator[dict[str, Tensor]]:
    chunk: dict[str, Tensor] = {}
    size = 0
    for name, tensor in weights:
        chunk[name] = tensor.cpu().contiguous()
        size += chunk[name].nbytes
        if chunk_bytes is not None and size >= chunk_bytes:
            yield chunk
            chunk, size = {}, 0
    if chunk:
        yield chunk
