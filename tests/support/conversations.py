"""Conversations with tool calls, and what training on them would see, worked out character by character."""

import json
from random import Random

from aepo_lightning.chat_formats import HermesFormat, TagFormat
from aepo_lightning.contracts.tool import ToolSpec
from aepo_lightning.policy.tokenizers import build_byte_tokenizer
from aepo_lightning.tasks.conversations import read_conversation
from aepo_lightning.training.sft import demonstrations_of
from tests.support.chatml import chatml_tokenizer

SEARCH = ToolSpec(
    name="search",
    text_parameter="query",
    parameters={
        "type": "object",
        "properties": {"query": {"type": "string"}},
        "required": ["query"],
    },
)
CALL = '<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>'


def tags():
    tokenizer = build_byte_tokenizer()
    return tokenizer, TagFormat(tokenizer, [SEARCH], system_prompt="none")


def hermes(**template):
    tokenizer = chatml_tokenizer(**template)
    return tokenizer, HermesFormat(tokenizer, [SEARCH], system_prompt="none")


def row_of(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def shown(row, chat_format, specs=(SEARCH,)):
    """The demonstrations of a row."""
    return demonstrations_of(read_conversation(row), chat_format, specs, "row")


def sources_and_texts(demonstration):
    return [(str(turn.source), turn.text) for turn in demonstration.turns]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def random_row(random):
    """A conversation in tags of the paper as one assistant message, and its characters with who wrote them."""

    def words():
        return "".join(random.choice("abc \n\u00e9\u4e2d") for _ in range(random.randint(1, 9))) + "z"

    asked = words()
    own, spans = "", [(f"user: {asked}\nassistant: ", False)]
    for _ in range(random.randint(0, 3)):
        turn, result = f"<think>{words()}</think><search> {words()}</search>", words()
        own += f"{turn}{random.choice(['', ' ', chr(10)])}<result>\n{result}\n</result>"
        spans += [(turn, True), (f" <result>\n{result}\n</result>", False)]
    answer = f"\n<think>{words()}</think><answer>{words()}</answer>"
    return row_of(("user", asked), ("assistant", own + answer)), [*spans, (answer, True)]


def random_rows(count, seed=0):
    random = Random(seed)
    return [random_row(random) for _ in range(count)]
