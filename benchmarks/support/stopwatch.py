"""Where the time of an iteration goes. Imports nothing of this folder: peers of other environments use it, too."""

from collections.abc import Callable
from time import perf_counter, process_time
from typing import Any


class Stopwatch:
    """Wall seconds of named sections; a section that is entered within another one is not counted there."""

    def __init__(self, rest: str) -> None:
        """Start with nothing measured.

        Args:
            rest: Name of all time outside of any section.
        """
        self._rest = rest
        self.restart()

    def restart(self) -> None:
        """Forget what was measured."""
        self.sections: dict[str, float] = {}
        self._open: list[str] = []
        self._start = self._last = perf_counter()
        self._cpu_start = process_time()

    def wrap(self, owner: Any, method: str, section: str, unless: str = "") -> None:
        """Make every call of a method a section, unless it happens within a certain other one."""
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if unless in self._open:
                return original(*args, **kwargs)
            self._note()
            self._open.append(section)
            try:
                return original(*args, **kwargs)
            finally:
                self._note()
                self._open.pop()

        setattr(owner, method, timed)

    def figures(self) -> dict[str, Any]:
        """Return what was measured since the restart."""
        self._note()
        return {
            "wall_s": self._last - self._start,
            "cpu_s": process_time() - self._cpu_start,
            "sections": dict(self.sections),
        }

    def _note(self) -> None:
        now = perf_counter()
        section = self._open[-1] if self._open else self._rest
        self.sections[section] = self.sections.get(section, 0.0) + now - self._last
        self._last = now
