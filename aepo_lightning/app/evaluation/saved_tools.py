"""What the tools of an evaluation said of themselves, kept in its folder: a replay needs that, and not the tools."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aepo_lightning.atomic_files import write_json
from aepo_lightning.contracts.tool import ToolCall, ToolContext, ToolResult, ToolSpec, ToolStatus
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.evaluation.results import unequal_settings
from aepo_lightning.evaluation.results_file import results_paths

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
    """Keep what tools say of themselves in the folder of an evaluation.

    Raises:
        ConfigError: If it holds results that were made with other tools; what differs is named.
        DataError: If it holds results, and what is there of their tools cannot be read.
    """
    if results_paths(folder) and (folder / TOOLS).is_file():
        old, new = _said(RecordedTools.load(folder).specs), _said(specs)
        if differences := list(unequal_settings(old, new, "tools")):
            listing = "\n".join(f"  {each}" for each in differences)
            raise ConfigError(
                f"All results in {folder} must be made with the same tools, but these differ:\n{listing}\nGive the "
                "same `tools`, or evaluate into another folder."
            )
        return
    write_json(folder / TOOLS, {"tools": [{name: getattr(spec, name) for name in _SAID} for spec in specs]})


def _said(specs: Sequence[ToolSpec]) -> dict[str, object]:
    """Return what tools say of themselves, by name, as JSON gives it back."""
    found: dict[str, object] = json.loads(
        json.dumps({spec.name: {name: getattr(spec, name) for name in _SAID} for spec in specs})
    )
    return found
