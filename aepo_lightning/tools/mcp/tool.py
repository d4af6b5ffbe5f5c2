"""Tools of an MCP server as tools of the policy."""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from aepo_lightning.contracts.tool import AnyLimits, ToolContext, ToolLimits, ToolSpec, ToolState
from aepo_lightning.errors import ConfigError, ToolError
from aepo_lightning.tools.mcp.server import MCPServer

logger = logging.getLogger(__name__)

_MAX_DESCRIPTION_CHARS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class MCPTool:
    """One tool of a server.

    Attributes:
        server: Where it is.
        remote_name: What the server calls it.
        spec: What the policy reads. A stateless tool uses shared sessions; an unforkable one gives every chain a
            session of its own, which it shares with the server's other tools.
    """

    server: MCPServer
    remote_name: str
    spec: ToolSpec = field()

    async def open(self, context: ToolContext) -> str:
        """Return the name of the chain's own session, which is opened at its first call."""
        session = "/".join(map(str, (context.question.question_id, *context.seed_path)))
        await self.server.begin_session(session)
        return session

    async def fork(self, state: str) -> str:
        """Refuse: nobody can copy a server's state."""
        raise ToolError(f"the state of {state} cannot be copied.")

    async def release(self, state: str) -> None:
        """Close the chain's own session, unless other tools of the server still use it."""
        await self.server.end_session(state)

    async def __call__(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Call the tool and return what it said as text. What is not text is named.

        Raises:
            ToolError: If the tool says that it failed, with what it says.
            ToolUnavailableError: If the server failed.
        """
        result = await self.server.call(self.remote_name, arguments, context.state or "")
        text = _text_of(result)
        if result.is_error:
            raise ToolError(text or "the tool failed without a message.")
        return text


def mcp_tools(
    server: MCPServer,
    names: Sequence[str] | None = None,
    *,
    prefix: str = "",
    limits: AnyLimits | None = None,
    is_stateful: bool = False,
) -> list[MCPTool]:
    """Connect to a server and return its tools.

    Args:
        server: Where they are.
        names: Which of them, by the server's names. None takes all.
        prefix: Put before every name, so that tools of several servers differ.
        limits: What a call may cost.
        is_stateful: The server remembers calls, as a browser does: every chain gets a session of its own, and chains
            that have called it do not branch.

    Raises:
        ConfigError: If a name is not among the server's, or two of them become one.
        ToolUnavailableError: If the server cannot be reached.
    """
    found = {each.name: each for each in server.list_tools()}
    missing = sorted(set(names or ()) - set(found))
    if missing:
        raise ConfigError(f"`names` must be tools of {server.name}, but {missing} are not. It has {sorted(found)}.")
    chosen = list(found) if names is None else list(names)
    twice = [name for name, count in Counter(map(_tag, chosen)).items() if count > 1]
    if twice:
        raise ConfigError(
            f"`names` must become distinct lower-case names, but several tools of {server.name} become {twice}. "
            f"Choose among {sorted(found)}."
        )
    state = ToolState.UNFORKABLE if is_stateful else ToolState.STATELESS
    return [
        MCPTool(
            server=server,
            remote_name=name,
            spec=_spec(found[name], server.identity, prefix, ToolLimits.of(limits), state),
        )
        for name in chosen
    ]


def _tag(name: str) -> str:
    return re.sub("[^a-z0-9_]+", "_", name.lower())


def _spec(remote: Any, server: str, prefix: str, limits: ToolLimits, state: ToolState) -> ToolSpec:
    name = prefix + _tag(remote.name)
    schema = _schema(remote)
    return ToolSpec(
        name=f"_{name}" if name[0].isdigit() else name,
        description=(remote.description or "")[:_MAX_DESCRIPTION_CHARS],
        parameters=schema,
        text_parameter=_text_parameter(schema),
        state=state,
        # A server that changes a tool's schema has changed the tool.
        version=json.dumps([server, remote.name, schema], sort_keys=True),
        limits=limits,
        provider=server,
    )


def _schema(remote: Any) -> dict[str, Any]:
    """Return the schema of a tool's arguments, or their names alone if it cannot be used: the server checks them too.

    Servers write other drafts of JSON schema, regular expressions of other languages, and references to other places.
    """
    schema = {"type": "object", **(remote.input_schema or {})}
    properties = schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    schema["properties"] = {
        name: each if isinstance(each, dict) else {} for name, each in properties.items() if each is not False
    }
    try:
        Draft202012Validator.check_schema(schema)
        for key, value in _keywords(schema):
            if key in ("$ref", "$dynamicRef"):
                _look_up(schema, value)
            else:
                re.compile(value)
    except (SchemaError, re.error, LookupError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        logger.warning("Arguments of %s are left to the server to check: %s", remote.name, str(error)[:200])
        return {"type": "object", "properties": {name: {} for name in schema["properties"]}}
    return schema


def _keywords(schema: Any) -> Iterator[tuple[str, str]]:
    """Yield the references and regular expressions of a schema."""
    if isinstance(schema, list):
        for each in schema:
            yield from _keywords(each)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef", "pattern") and isinstance(value, str):
                yield key, value
            elif key == "patternProperties" and isinstance(value, dict):
                yield from (("pattern", pattern) for pattern in value)
            yield from _keywords(value)


def _look_up(schema: Any, reference: str) -> None:
    """Follow a reference within a schema; one to another place would be fetched from there."""
    if reference != "#" and not reference.startswith("#/"):
        raise LookupError(f"{reference[:80]} is not within the schema.")
    for part in reference.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        schema = schema[int(name)] if isinstance(schema, list) else schema[name]


def _text_parameter(schema: Mapping[str, Any]) -> str:
    """Return the first required parameter that takes text, or the first that does, or the first."""
    properties: Mapping[str, Any] = schema["properties"]
    texts = [name for name, each in properties.items() if each.get("type") == "string"]
    required = [name for name in texts if name in schema.get("required", ())]
    return next(iter((*required, *texts, *properties)), "")


def _text_of(result: Any) -> str:
    pieces = []
    for content in result.content:
        if content.type == "text":
            pieces.append(content.text)
        elif content.type == "resource" and getattr(content.resource, "text", None) is not None:
            pieces.append(content.resource.text)
        else:
            kind = getattr(content, "mime_type", None) or getattr(content, "uri", "")
            pieces.append(f"[{content.type} {kind}]".replace(" ]", "]"))
    if not pieces and result.structured_content is not None:
        pieces.append(json.dumps(result.structured_content, ensure_ascii=False))
    return "\n".join(pieces)
