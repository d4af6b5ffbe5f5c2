"""The python tool: model-written code behind the best wall there is."""

import logging
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from aepo_lightning.contracts.tool import AnyLimits, ToolContext, ToolLimits, ToolSpec, ToolState
from aepo_lightning.errors import ConfigError, ToolError, ToolTimeoutError, ToolUnavailableError
from aepo_lightning.tools.jail import Execution, ExitKind, Isolation, PoolSettings, PythonPool, SandboxUnavailableError
from aepo_lightning.tools.jail.session import PythonSession

logger = logging.getLogger(__name__)

_MIN_OUTPUT_CHARS = 200
_MAX_BYTES_PER_CHAR = 4  # UTF-8
_MAX_TRACEBACK_LINES = 10
_CODE_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"code": {"type": "string", "description": "The program."}},
    "required": ["code"],
}
_DESCRIPTION = "Run Python code and read what it prints. The value of a last expression is printed."
_STATEFUL = " Names, files and imports of earlier calls are kept."
_PROBLEMS = {
    ExitKind.MEMORY: "The code used more memory than it may.",
    ExitKind.FILES: "The code made more files than it may, and was stopped.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonTool:
    """Run model-written Python, each call in a process of its own, walled off from the host.

    With bubblewrap that is a warm jail: no network, no files of the host, no other processes, limits on time, memory,
    files and output, tried out at the start. Without it, a sandbox server (`remote_url`), or nothing at all: then the
    run ends before its first rollout with a message that says what to install. `isolation=unsafe` must be written
    out; code can then do what the user of this process can do. The jail shares the kernel with the host, so a bug of
    the kernel is in reach of the code: for code of people you do not trust, use a sandbox server on another machine.

    Attributes:
        name: The tag of the tool.
        timeout_s: Seconds that code may run; they start when it gets a worker. Code that takes longer raises
            `ToolTimeoutError`. Keep it below the deadline of the limits.
        memory_mb: Address space of a call in MiB, imported packages included.
        max_output_chars: Longest answer. Longer output is cut and ends with a note inside this limit; a flood ends the
            program at once.
        isolation: `auto` is bubblewrap, else the server, else refuse.
        remote_url: Of a server that speaks the SandboxFusion protocol.
        num_workers: Calls that run at the same time. None is twice the cores, at least four more than cores.
        is_stateful: Calls of a chain find what the earlier ones left, and a branch takes a copy of it along. The code
            of earlier calls is run again, unseen, before each call and within its time.
        limits: What a call may cost the runtime.

    Raises:
        ConfigError: If a limit is too small to run anything, or the isolation is unknown.
        ConfigError: If `max_output_chars` is too small for a message.

    References:
        Echo of the last expression and "standard output or the error" follow the official tool of arXiv:2510.14545.
    """

    name: str = "python"
    timeout_s: float = 10.0
    memory_mb: int = 1024
    max_output_chars: int = 4000
    isolation: Literal["auto", "bubblewrap", "remote", "unsafe"] = "auto"
    remote_url: str | None = None
    num_workers: int | None = None
    is_stateful: bool = False
    limits: AnyLimits = field(default_factory=ToolLimits)
    _pool: PythonPool = field(init=False, repr=False, compare=False)
    _reported: set[str] = field(init=False, repr=False, compare=False, default_factory=set)

    def __post_init__(self) -> None:
        """Refuse limits under which nothing runs; nothing is started yet."""
        if self.max_output_chars < _MIN_OUTPUT_CHARS:
            raise ConfigError(
                f"`max_output_chars` must be at least {_MIN_OUTPUT_CHARS}, but got {self.max_output_chars}. Raise it."
            )
        settings = PoolSettings(
            num_workers=self.num_workers,
            timeout_s=self.timeout_s,
            memory_mb=self.memory_mb,
            max_output_bytes=max(1 << 16, _MAX_BYTES_PER_CHAR * self.max_output_chars),
            isolation=self.isolation,
            remote_url=self.remote_url,
        )
        object.__setattr__(self, "_pool", PythonPool(settings))

    @property
    def spec(self) -> ToolSpec:
        """Name and schema: the code."""
        return ToolSpec(
            name=self.name,
            description=_DESCRIPTION + (_STATEFUL if self.is_stateful else ""),
            parameters=_CODE_SCHEMA,
            text_parameter="code",
            state=ToolState.FORKABLE if self.is_stateful else ToolState.STATELESS,
            limits=ToolLimits.of(self.limits),
        )

    async def start(self) -> None:
        """Open the pool, and say in the log, once, what walls stand.

        Raises:
            ConfigError: If no isolation can be had.
        """
        isolation = await self.isolate()
        if isolation.description not in self._reported:
            self._reported.add(isolation.description)
            log = logger.warning if isolation.level == "none" else logger.info
            log("Tool(%s): %s", self.name, isolation.description)

    async def isolate(self) -> Isolation:
        """Open the pool, and return what walls stand.

        Raises:
            ConfigError: If no isolation can be had.
        """
        return await self._pool.start()

    async def open(self, context: ToolContext) -> PythonSession:
        """Return a session for a chain."""
        del context
        return await self._pool.session()

    async def fork(self, state: PythonSession) -> PythonSession:
        """Return a session that goes on from the same state."""
        return await state.fork()

    async def release(self, state: PythonSession) -> None:
        """Forget a session. Nothing of it runs between calls."""

    async def __call__(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Run code and return what it printed.

        Args:
            arguments: The `code`. If its last statement is an expression and not a call of `print`, it is printed.
            context: The chain. Random numbers of the code are seeded with its place in the rollout.

        Returns:
            Standard output, stripped; empty if the code printed nothing.

        Raises:
            ToolTimeoutError: If the code did not end in time.
            ToolError: If the code failed, with the last lines of its standard error.
            ToolUnavailableError: If the sandbox failed, or too many calls wait for it.
        """
        code, seed = str(arguments["code"]), _seed(context)
        try:
            if isinstance(context.state, PythonSession):
                done = await context.state.run(code, seed=seed)
            else:
                done = await self._pool.run(code, seed=seed)
        except SandboxUnavailableError as error:
            raise ToolUnavailableError(str(error)) from None
        return self._answer(done)

    def _answer(self, done: Execution) -> str:
        if done.exit is ExitKind.LOST:
            raise ToolUnavailableError("The sandbox failed while the code ran.")
        if done.exit is ExitKind.TIMEOUT:
            raise ToolTimeoutError(f"The code did not end within {self.timeout_s:g} s and was stopped.")
        is_flooded = done.exit is ExitKind.OUTPUT
        text = done.stdout.strip()
        if is_flooded and len(text) < self.max_output_chars:
            raise ToolError("The code wrote too much to standard error and was stopped.")
        if not is_flooded and done.exit is not ExitKind.OK:
            known = _PROBLEMS.get(done.exit)
            raise ToolError(known or self._last_lines(done.stderr) or _describe_exit(done.exit_code))
        if len(text) <= self.max_output_chars and not is_flooded:
            return text
        note = "\n[output cut: the code printed too much" + (" and was stopped]" if is_flooded else "]")
        return text[: self.max_output_chars - len(note)] + note

    def _last_lines(self, stderr: str) -> str:
        return "\n".join(stderr.strip().splitlines()[-_MAX_TRACEBACK_LINES:])[-self.max_output_chars :]

    def metrics(self) -> Mapping[str, float]:
        """Return `pool_workers`: how many workers are up, busy ones included."""
        return {"pool_workers": float(self._pool.num_ready)}

    def shut_down(self) -> None:
        """End the workers. They also end with this process."""
        self._pool.close()


def _seed(context: ToolContext) -> int:
    place = repr((context.question.question_id, context.seed_path, context.call_index))
    return int.from_bytes(blake2b(place.encode("utf-8", "surrogatepass"), digest_size=4).digest())


def _describe_exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f"The code ended with exit code {code} and no message."
    names = {known.value: known.name for known in signal.Signals}
    return f"The code was ended by signal {names.get(-code, -code)}."
