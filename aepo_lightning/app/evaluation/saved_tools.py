"""What the tools of an evaluation said of themselves, kept in its folder: a replay needs that, and not the tools."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aepo_lightning.atomic_files import write_json
from aepo_lightning.contracts.tool import ToolCall, ToolContext, ToolResult, ToolSpec, ToolStatus
from aepo_lightning.errors import DataError

TOOLS = "tools.json"
"""In the folder of an evaluation."""
_SAID = ("name", "description", "parameters", "text_parameter")
"""What a prompt may tell of a tool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTools:
    """Tools that were there once. None of them answers: what a replay needs is on record."""

    specs: tuple[ToolSpec, ...]

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Names of the tools, in the order given."""
        return tuple(spec.name for spec in self.specs)

    def only(self, names: Collection[str]) -> "RecordedTools":
        """Return those that have one of these names."""
        return replace(self, specs=tuple(spec for spec in self.specs if spec.name in names))

    async def call(self, call: ToolCall, context: ToolContext) -> ToolResult:
        """Say that there is no record. The tree is different by then."""
        del call, context
        return ToolResult(text="Error: no result of this call is on record.", status=ToolStatus.ERROR)

    @classmethod
    def load(cls, folder: Path) -> "RecordedTools":
        """Read what was kept in the folder of an evaluation.

        Raises:
            DataError: If there is nothing that can be read.
        """
        path = folder / TOOLS
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["tools"]
            return cls(specs=tuple(ToolSpec(**{name: each[name] for name in _SAID}) for each in found))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} must say which tools there were, but: {error!r}. Evaluate again.") from error


def save_tools(folder: Path, specs: Sequence[ToolSpec]) -> None:
    """Keep what tools say of themselves in the folder of an evaluation."""
    write_json(folder / TOOLS, {"tools": [{name: getattr(spec, name) for name in _SAID} for spec in specs]})
