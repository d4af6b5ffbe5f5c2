"""Whether a score may be quoted: what is missing, not judged, or hindered by failing tools, against stated shares."""

from dataclasses import dataclass

from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.summary import Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustLimits:
    """Shares of trajectories above which a score is marked.

    Raises:
        ConfigError: If one is not in [0, 1].
    """

    max_failed_tools: float = 0.05
    """With a call that failed because of what stands behind the tool."""
    max_unjudged: float = 0.05
    """Without a verdict, whether a judge abstained or a rule gave none."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        for name in ("max_failed_tools", "max_unjudged"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"`{name}` must be in [0, 1], but got {getattr(self, name)}.")

    def doubts(self, summary: Summary) -> list[str]:
        """Return why a score should not be trusted as it stands. Empty if nothing speaks against it."""
        shares, found = summary.shares, []
        if summary.num_missing:
            of_questions = "" if summary.num_asked is None else f" of {summary.num_asked} questions"
            found.append(f"{summary.num_missing} trajectories{of_questions} are missing")
        if shares.failed_tools > self.max_failed_tools:
            found.append(
                f"tools failed in {_percent(shares.failed_tools)} of the trajectories (limit "
                f"{_percent(self.max_failed_tools)})"
            )
        if (unjudged := shares.abstained + shares.unscored) > self.max_unjudged:
            found.append(
                f"{_percent(unjudged)} of the trajectories have no verdict (limit {_percent(self.max_unjudged)}): the "
                f"score is between {_percent(summary.score.if_wrong)} and {_percent(summary.score.if_right)}"
            )
        return found


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
