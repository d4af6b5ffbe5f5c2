"""How a benchmark is asked: prompt, tools, limits, decoding, and where the answer is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from aepo_lightning.errors import ConfigError
from aepo_lightning.rewards.extraction import EXTRACTION_MODES, ExtractionMode
from aepo_lightning.rollout.settings import SamplingSettings

PromptType = Literal["code_search", "search", "math", "base"]
"""The paper's names for what a prompt offers: search and Python, search, Python, or no tool."""

PROMPT_TOOLS: Mapping[str, tuple[str, ...]] = {
    "code_search": ("search", "python"),
    "search": ("search",),
    "math": ("python",),
    "base": (),
}
"""The tools that each type of prompt offers, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationProtocol:
    """Under which rules a benchmark's numbers are comparable.

    Raises:
        ConfigError: If the type of prompt is unknown or a number is not positive.
    """

    prompt: PromptType = "code_search"
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    """Decoding, limits of calls, and what is said where one is reached."""
    num_samples: int = 5
    """Independent trajectories for each question."""
    max_model_len: int = 32_768
    """Tokens of prompt and response together."""
    extraction: ExtractionMode = "paper"
    """Where the answer is read in a response: a mode of `rewards.extraction.extract_answer`."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.prompt not in get_args(PromptType):
            raise ConfigError(f"`prompt` must be one of {', '.join(get_args(PromptType))}, but got {self.prompt!r}.")
        if self.extraction not in EXTRACTION_MODES:
            raise ConfigError(
                f"`extraction` must be one of {', '.join(EXTRACTION_MODES)}, but got {self.extraction!r}."
            )
        for name in ("num_samples", "max_model_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` must be at least 1, but got {getattr(self, name)}.")

    @property
    def tools(self) -> tuple[str, ...]:
        """Names of the tools that the prompt offers."""
        return PROMPT_TOOLS[self.prompt]
