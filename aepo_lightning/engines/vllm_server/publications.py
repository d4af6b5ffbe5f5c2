"""What a pool of servers is given to read: all weights, or weights that stay and an adapter that changes."""

from collections.abc import Collection, Iterable

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from aepo_lightning.contracts.engine import LowRankUpdate
from aepo_lightning.engines.adapters import packed_updates
from aepo_lightning.engines.vllm_server.publication_files import Publication, PublicationFiles
from aepo_lightning.errors import EngineError
from aepo_lightning.policy.checked_weights import checked_weights, copies
from aepo_lightning.policy.skeleton import meta_model


class Publications:
    """Writes files for servers, on the rank that publishes."""

    def __init__(self, config: PretrainedConfig, weights_dir: str | None, chunk_bytes: int) -> None:
        """Keep the settings.

        Args:
            config: Of the architecture, to check names and shapes.
            weights_dir: A folder that this process writes and all servers read. None: this machine's memory.
            chunk_bytes: Size at which a file is closed and the next begun.
        """
        self._config = config
        self._skeleton: PreTrainedModel | None = None
        self._files = PublicationFiles(weights_dir, chunk_bytes)
        self._base_files = PublicationFiles(weights_dir, chunk_bytes)
        self._base: Publication | None = None
        self._adapted: frozenset[str] = frozenset()

    def whole(self, weights: Iterable[tuple[str, Tensor]], name: str) -> Publication:
        """Write all weights, in place of whatever was written before.

        Raises:
            EngineError: If they are not those of the architecture, or the folder cannot be written.
        """
        self.clear()
        return self._files.write(self._checked(weights), name)

    def keep_base(self, weights: Iterable[tuple[str, Tensor]], adapted: Collection[str]) -> None:
        """Write weights that stay, below adapters to come.

        Raises:
            EngineError: As `whole`.
        """
        self.clear()
        self._base = self._base_files.write(self._checked(weights), "base")
        self._adapted = frozenset(adapted)

    def with_adapter(self, updates: Iterable[LowRankUpdate], name: str) -> Publication:
        """Write an adapter, in place of the last one.

        Raises:
            EngineError: If there is no base, the updates are not those that it announced, or the folder cannot be
                written.
        """
        if self._base is None:
            raise EngineError("An adapter needs the weights below it. Publish them with `load_base` first.")
        found = {update.name: update for update in updates}
        if odd := sorted(found.keys() ^ self._adapted):
            raise EngineError(f"An adapter must change the weights that were announced, but {odd[0]!r} differs.")
        (adapter,) = self._files.write(packed_updates(found.values()), name, whole=True).paths
        return Publication(name=name, paths=self._base.paths, adapter=adapter)

    def clear(self) -> None:
        """Delete all files."""
        self._base = None
        self._files.clear()
        self._base_files.clear()

    def _checked(self, weights: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
        if self._skeleton is None:
            self._skeleton = meta_model(self._config)
        return copies(checked_weights(self._skeleton, weights, EngineError))
