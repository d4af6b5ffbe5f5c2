"""Which endpoint has the keys and values of a prefix: branches go where their trunk went."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence


class PrefixRoutes:
    """Remembers, block by block, which endpoint read or wrote a sequence last.

    A prompt follows the longest known prefix, but only one that covers half of it: a system prompt that all questions
    share must not lead them all to the same place.
    """

    def __init__(self, block_size: int = 32, max_entries: int = 1 << 17) -> None:
        """Start without any memory.

        Args:
            block_size: Tokens of one step along a prefix.
            max_entries: How many prefixes are remembered; the least recently used goes first.
        """
        self._block_size = block_size
        self._max_entries = max_entries
        self._routes: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._routes)

    def find(self, tokens: Sequence[int]) -> int | None:
        """Return the endpoint that knows most of a prompt, or None if none knows half of it."""
        found, length = None, 0
        for key, end in self._keys(tokens):
            if (endpoint := self._routes.get(key)) is not None:
                self._routes.move_to_end(key)
                found, length = endpoint, end
        return found if 2 * length >= len(tokens) else None

    def record(self, tokens: Sequence[int], endpoint: int) -> None:
        """Remember that an endpoint has computed all of a sequence."""
        for key, _ in self._keys(tokens):
            self._routes[key] = endpoint
            self._routes.move_to_end(key)
        while len(self._routes) > self._max_entries:
            self._routes.popitem(last=False)

    def clear(self) -> None:
        """Forget everything, as the servers do when their weights change."""
        self._routes.clear()

    def _keys(self, tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield a key and an end for each full block, and for a whole prompt that ends within one."""
        key = 0
        for start in range(0, len(tokens), self._block_size):
            end = min(start + self._block_size, len(tokens))
            key = hash((key, *tokens[start:end]))
            yield key, end
