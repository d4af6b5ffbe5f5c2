"""A tool: what it says of itself, what it is called with, what it answers, and what runs its calls.

Whoever writes a tool reads this file and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from aepo_lightning.contracts.question import Question
from aepo_lightning.errors import ConfigError

T = TypeVar("T")


class ToolState(StrEnum):
    """What a tool remembers between the calls of a chain, hence what a branch needs."""

    STATELESS = "stateless"
    """Nothing: every call stands alone."""
    REPLAYABLE = "replayable"
    """A state that the same calls build again: a branch replays its trunk's."""
    FORKABLE = "forkable"
    """A state that can be copied: a branch gets a copy of its trunk's."""
    UNFORKABLE = "unforkable"
    """A state that can be neither: chains that have called the tool do not branch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a failed call is tried again, within its deadline."""

    max_attempts: int = 1
    """Attempts in all; 1 never tries again."""
    backoff_s: float = 0.5
    """Wait before the second attempt; it doubles from attempt to attempt, with jitter. A server that says how long to
    wait is believed."""
    errors: Sequence[str] = ("ToolUnavailableError",)
    """Names of the exceptions, or of their bases, that are worth another attempt."""

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        if self.max_attempts < 1 or not self.backoff_s >= 0:
            raise ConfigError(
                "`max_attempts` must be at least 1 and `backoff_s` not negative, but got "
                f"{self.max_attempts} and {self.backoff_s}."
            )
        if isinstance(self.errors, str):
            raise ConfigError(f"`errors` must be a list of names, but got {self.errors!r}. Write [{self.errors}].")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLimits:
    """What a tool may cost. None leaves it to the runtime's own setting."""

    deadline_s: float | None = None
    """Seconds for one call, attempts and waits between them included. They start when the call gets its slot."""
    max_concurrent_calls: int | None = None
    max_queued_calls: int | None = None
    """Calls that may wait for a slot; one more is answered at once that the tool is busy."""
    calls_per_second: float | None = None
    """Starts of calls. None does not count them."""
    max_result_chars: int | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    breaker_failures: int = 0
    """So many failures of the infrastructure within `breaker_window_s`, if they are at least `breaker_share` of its
    calls, open the circuit: further calls are refused at once for a while. 0 never opens it."""
    breaker_share: float = 0.5
    breaker_window_s: float = 60.0
    breaker_reset_s: float = 30.0
    """How long an open circuit refuses; then one call is let through to see."""
    is_single_flight: bool = False
    """Chains that ask the same thing at the same time share one call."""
    cache_ttl_s: float | None = 0.0
    """How long an answer stays in the runtime's cache: 0 is not at all, None for ever."""
    cache_empty_ttl_s: float | None = 0.0
    """The same for answers that are empty."""

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        if not 0 < self.breaker_share <= 1:
            raise ConfigError(f"`breaker_share` must be in (0, 1], but got {self.breaker_share}.")
        for name in ("deadline_s", "calls_per_second", "breaker_reset_s", "breaker_window_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"`{name}` must be positive and finite, but got {value}.")
        for name in ("max_concurrent_calls", "max_result_chars"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"`{name}` must be at least 1, but got {value}.")
        for name in ("max_queued_calls", "breaker_failures", "cache_ttl_s", "cache_empty_ttl_s"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"`{name}` must not be negative, but got {value}.")

    @classmethod
    def of(cls, limits: "AnyLimits | None") -> "ToolLimits":
        """Return limits that are given as an object, as a mapping of its fields, or not at all.

        Args:
            limits: In a mapping, `retry` may be a mapping too. None is the defaults.

        Raises:
            ConfigError: If a mapping has a key that is no limit.
        """
        if isinstance(limits, ToolLimits):
            return limits
        settings = dict(limits or {})
        retry = settings.pop("retry", None)
        if retry is not None:
            settings["retry"] = retry if isinstance(retry, RetryPolicy) else from_mapping(RetryPolicy, retry, "retry")
        return from_mapping(cls, settings, "limits")


AnyLimits: TypeAlias = ToolLimits | Mapping[str, Any]
"""Limits as tools take them: `ToolLimits(deadline_s=30.0)`, or `{"deadline_s": 30.0}`, as a configuration has them."""


def from_mapping(kind: type[T], settings: Mapping[str, Any], name: str) -> T:
    """Return a data class with the fields of a mapping.

    Args:
        kind: The class.
        settings: As a configuration has them.
        name: What they are called there, for the message.

    Raises:
        ConfigError: If a key is no field of the class.
    """
    known = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    for key in settings:
        if key not in known:
            near = get_close_matches(str(key), known, n=1) or known
            raise ConfigError(
                f"`{name}` must have keys of {kind.__name__}, but got {key!r}. Did you mean "
                f"{' or '.join(f'`{each}`' for each in near)}?"
            )
    return kind(**settings)


def _text_schema() -> dict[str, Any]:
    return {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """What there is to know about a tool before it is called."""

    name: str
    """Lower-case letters, digits and underscores. In the tag format it is the tag."""
    description: str = ""
    """What the policy reads about the tool, where its prompt lists tools."""
    parameters: Mapping[str, Any] = field(default_factory=_text_schema)
    """JSON schema of the arguments, an object."""
    text_parameter: str = "text"
    """The parameter that gets the text between tags. Empty for a tool without parameters."""
    empty_answer: str = ""
    """What the policy reads where the tool answers nothing. Empty names the tool."""
    state: ToolState = ToolState.STATELESS
    is_question_bound: bool = False
    """Whether the answer depends on the question that the chain works on, so that other questions must not share it."""
    is_history_bound: bool = False
    """Whether the answer depends on the chain's calls before, to any tool, and on what they were answered."""
    version: str = "1"
    """Part of the cache key: a tool that answers in another way must have another one."""
    limits: ToolLimits = field(default_factory=ToolLimits)
    provider: str = ""
    """What stands behind the tool, such as a server: tools that name the same one share its circuit breaker, which the
    limits of the first of them set. Empty is the tool alone."""


class ToolStatus(StrEnum):
    """How a tool call ended. Everything but `OK` is an observation that names the failure."""

    OK = "ok"
    EMPTY = "empty"
    ERROR = "error"
    TIMEOUT = "timeout"
    UNKNOWN_TOOL = "unknown_tool"
    MALFORMED = "malformed"
    UNAVAILABLE = "unavailable"
    """What stands behind the tool failed or is known to be down: the infrastructure, not the call."""
    BUSY = "busy"
    """Too many calls were waiting already."""
    CALL_LIMIT = "call_limit"
    """The chain had made as many calls as it may."""
    REPEATED = "repeated"
    """The chain had an answer to the same call, and may not ask again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A request to a tool, as the policy wrote it."""

    tool: str
    """Name of the tool, which is also its tag."""
    text: str
    """What stood between the tags, stripped. Empty if the call could not be parsed."""
    problem: str = ""
    """What is wrong with the call itself, such as a closing tag without an opening one. Empty for a good call."""
    arguments: Mapping[str, Any] | None = None
    """Named arguments, in formats that have them. None gives `text` to the tool's text parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext:
    """What a tool may know about the chain that calls it."""

    question: Question
    call_index: int
    """0 for the first call of the chain."""
    seed_path: tuple[int | str, ...] = ()
    """The branch path of the chain, unique among the chains of a question."""
    history: tuple[tuple[ToolCall, "ToolResult"], ...] = ()
    """The chain's calls before this one, to all tools, and their answers."""
    state: Any = None
    """What a stateful tool's `open` returned for this chain."""

    @property
    def seed(self) -> int:
        """A number of 32 bits for the call's place in the rollout, for tools that draw random numbers."""
        place = repr((self.question.question_id, self.seed_path, self.call_index))
        return int.from_bytes(blake2b(place.encode("utf-8", "surrogatepass"), digest_size=4).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a tool answered. `text` is never empty: failures say what failed."""

    text: str
    status: ToolStatus = ToolStatus.OK
    duration_s: float = 0.0
    """Time the tool ran, all attempts, without the wait for a slot."""
    is_truncated: bool = False
    queue_s: float = 0.0
    """Time the call waited for a slot."""
    num_attempts: int = 1
    is_cached: bool = False
    """The answer came from the cache."""
    is_shared: bool = False
    """The answer is that of the same call by another chain, which was running."""
    is_program_timeout: bool = False
    """Whether the time-out is that of a program which the policy wrote, and which the tool itself has stopped."""

    @property
    def is_outage(self) -> bool:
        """Whether what stands behind the tool failed, and not the call: unavailable, busy, or too slow."""
        if self.status is ToolStatus.TIMEOUT:
            return not self.is_program_timeout
        return self.status in (ToolStatus.UNAVAILABLE, ToolStatus.BUSY)


@runtime_checkable
class Tool(Protocol):
    """Something the policy may call. One instance serves many concurrent calls."""

    @property
    def spec(self) -> ToolSpec:
        """Name, schema, limits, and what kind of state the tool has."""
        ...

    async def __call__(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Answer one call. Cancelling the call must stop the work behind it.

        Args:
            arguments: What the policy wrote, checked against the schema.
            context: The chain that calls, with its state if the tool keeps one.

        Raises:
            ToolError: If the call failed in a way that the model should read about.
            ToolUnavailableError: If what stands behind the tool failed, and another attempt may succeed.
        """
        ...


@runtime_checkable
class StatefulTool(Tool, Protocol):
    """A tool that remembers the calls of a chain. `spec.state` says what a branch does with that memory."""

    async def open(self, context: ToolContext) -> Any:
        """Return a fresh state for a chain. It comes back as `context.state` with each of the chain's calls."""
        ...

    async def fork(self, state: Any) -> Any:
        """Return a copy of a state that goes its own way. Called for forkable tools only."""
        ...

    async def release(self, state: Any) -> None:
        """Free a state. Nothing is called with it afterwards."""
        ...


@runtime_checkable
class ToolRunner(Protocol):
    """Runs calls of any tool with deadlines and limits. Only a tool that stays unavailable may make it raise."""

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Names of the tools that can be called."""
        ...

    async def call(self, call: ToolCall, context: ToolContext) -> ToolResult:
        """Run one call; failures come back as a result whose status says which."""
        ...


@runtime_checkable
class BranchingToolRunner(ToolRunner, Protocol):
    """A runner that keeps the states of chains and follows their branches."""

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """What the tools say of themselves."""
        ...

    async def start(self) -> None:
        """Make ready before the first call.

        Raises:
            ConfigError: If a tool cannot work here.
        """
        ...

    def branch_problem(self, history: Sequence[tuple[ToolCall, ToolResult]]) -> str | None:
        """Return why a chain with these calls must not branch, or None if it may."""
        ...

    def branch(self, source: ToolContext, target: ToolContext) -> None:
        """Note that `target`'s chain goes on from where `source`'s stands, after the calls of `target.history`.

        Returns at once. The copy is made before either chain's next call.
        """
        ...

    async def release(self, context: ToolContext) -> None:
        """Free the states of a chain that has ended."""
        ...

    async def close(self) -> None:
        """Free what the running event loop holds. More calls may follow."""
        ...
