"""Chat templates as people ship them: what fails is one line, and results are what the template writes."""

import json
import threading
import time

import pytest

from aepo_lightning.chat_formats import HermesFormat, TagFormat, message_end_id, template
from aepo_lightning.contracts.question import Message
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.contracts.tool import ToolSpec
from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.tokenizers import JOIN_TEMPLATE, ROLE_TEMPLATE, build_byte_tokenizer
from tests.support.builders import ScriptedEngine, calls_then_answer, grow
from tests.support.chatml import CHATML, chatml_tokenizer
from tests.support.processes import wait_until

SPEC = ToolSpec(name="search", description="Search.")
SYSTEM, USER = Message(role="system", content="Be brief."), Message(role="user", content="Hi")
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" * 9
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
DROPS_SYSTEM = ROLE_TEMPLATE.replace("in messages", "in messages if message.role != 'system'")
RESULTS = (
    *('say "x"', "it's", "two\nlines\n", " spaces ", '{"a": [1, "b"]}', "<b>bold</b> &amp;", "back\\slash", ""),
    *("5", "{{ x }}", "<|im_start|>system", "</tool_response>", "word " * 2000),
)


def tags(chat_template, **options):
    return TagFormat(build_byte_tokenizer(chat_template=chat_template), ("search",), **options)


def hermes(chat_template):
    return HermesFormat(chatml_tokenizer(chat_template), [SPEC])


@pytest.mark.parametrize(
    "make",
    [
        lambda: tags(ENDLESS).encode_prompt([USER]),
        lambda: tags(ENDLESS).encode_prompt([SYSTEM, USER]),
        lambda: hermes(ENDLESS),
    ],
    ids=["user", "system", "results"],
)
def test_a_template_that_loops_for_ever_is_ended_at_a_limit_of_computing_time(monkeypatch, make):
    monkeypatch.setattr(template, "TIME_LIMIT_S", 0.05)
    with pytest.raises(ConfigError, match=r"must write a conversation within 0\.05 s"):
        make()
    wait_until(lambda: all(thread.name != "aepo-chat-template" for thread in threading.enumerate()))


def test_waiting_is_not_computing():
    assert template.within_limit(lambda: time.sleep(0.1) or "done", limit_s=0.05) == "done"


@pytest.mark.parametrize(
    ("chat_template", "message"),
    [
        ("{% for m in messages %}", "must be a Jinja template, but line 1 of it is none: "),
        (
            "{{ raise_exception('only\nlater') }}",
            "must write messages of the roles user, but it raised TemplateError: only",
        ),
        ("{{ messages[0].content.nothing() }}", "but it raised UndefinedError: "),
        ("{{ 1 // 0 }}", "but it raised ZeroDivisionError: "),
        ("nothing of it", "but it leaves them out"),
    ],
)
def test_a_template_that_fails_is_one_line(chat_template, message):
    with pytest.raises(ConfigError, match=message) as error:
        tags(chat_template).encode_prompt([USER])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("chat_template", [NO_SYSTEM + ROLE_TEMPLATE, DROPS_SYSTEM], ids=["raises", "drops"])
def test_a_template_without_a_system_role_is_refused_with_what_to_set(chat_template):
    with pytest.raises(
        ConfigError, match=r"must write system messages, but does not\. Set `rollout\.chat_format\.system_role"
    ):
        tags(chat_template).encode_prompt([SYSTEM, USER])
    chat_format = tags(chat_template, system_role="user")
    assert chat_format.decode(chat_format.encode_prompt([SYSTEM, USER])) == "user: Be brief.\n\nHi\nassistant: "
    assert chat_format.encode_prompt([USER]) == tags(ROLE_TEMPLATE).encode_prompt([USER])


def test_a_template_that_lists_no_tools_is_refused():
    with pytest.raises(
        ConfigError, match=r"must list the tools, but writes nothing of 'search'\. Set `rollout=default`"
    ):
        hermes(CHATML.replace("if tools", "if false"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("m.content", "m.content if m.role != 'tool' else raise_exception('no tools here')"), "Set `rollout=default`"),
        (("+ m.content + '\\n</tool_response>'", "+ '\\n</tool_response>'"), "once each and in order"),
        (("+ m.content + '\\n</tool_response>'", "+ m.content + m.content + '</tool_response>'"), "once each"),
        (("+ m.content +", "+ (m.content | int('x') | string) +"), "once each"),
        (("m.content + '\\n</tool", "messages[loop.length + 1 - loop.index0].content + '\\n</tool"), "and in order"),
        (("+ m.content +", "+ (raise_exception('nothing') if m.content == 'null' else m.content) +"), "nothing"),
    ],
    ids=["raises", "hides", "doubles", "changes", "turns", "stumbles"],
)
def test_a_template_that_cannot_write_results_is_refused(change, message):
    with pytest.raises(ConfigError, match=message) as error:
        hermes(CHATML.replace(*change))
    assert "\n" not in str(error.value)


WAYS = {
    "as it is": "m.content",
    "trimmed": "m.content | trim",
    "json": "m.content | tojson",
    "escaped": "m.content | escape",
    "one line": "m.content | replace('\\n', ' ')",
    "cut": "m.content[:100]",
    "by its kind": "('json: ' if m.content.startswith('{') else '') + m.content",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("texts", [*((text,) for text in RESULTS), ("first\n", "second"), ("a", "a", "a"), RESULTS])
def test_results_are_what_the_template_writes_for_any_text(way, texts):
    tokenizer = chatml_tokenizer(
        CHATML.replace("'\\n<tool_response>\\n' + m.content", f"'\\n<tool_response>\\n' + ({WAYS[way]})")
    )
    chat_format = HermesFormat(tokenizer, [SPEC])
    pieces = chat_format.encode_results(texts)
    clean = chat_format._codec.neutralise
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ANSWER"}]
    chat += [{"role": "tool", "content": clean(text)} for text in texts]
    whole = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    expected = tokenizer.encode(whole.split("ANSWER<eos>")[1], add_special_tokens=False)
    assert (len(pieces), [token for piece in pieces for token in piece]) == (len(texts), expected)


def test_results_are_written_as_where_tools_are_listed():
    told = CHATML.replace("+ m.content +", "+ m.content + ('!' if tools else '?') +")
    chat_format = hermes(told)
    assert "x!" in chat_format.decode(chat_format.encode_results(["x"])[0])


def test_each_result_stands_in_a_piece_of_its_own():
    chat_format = hermes(CHATML)
    pieces = chat_format.encode_results(["first", "second", "third"])
    assert [("first" in text, "second" in text, "third" in text) for text in map(chat_format.decode, pieces)] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]


ENDS = "{% for m in messages %}{{ m.role + m.content + ('<end>' if m.role == 'assistant' else '') }}{% endfor %}"


def test_the_end_of_a_message_is_that_of_the_template():
    tokenizer = build_byte_tokenizer(("<end>",), ENDS)
    assert message_end_id(tokenizer) == tokenizer.convert_tokens_to_ids("<end>")
    assert message_end_id(build_byte_tokenizer(chat_template=JOIN_TEMPLATE)) == 1
    tokenizer.chat_template = None
    assert message_end_id(tokenizer) == 1
    longer = build_byte_tokenizer(("<en", "<end>"), ENDS)
    assert message_end_id(longer) == longer.convert_tokens_to_ids("<end>")


def test_the_policys_own_end_of_message_is_not_written_again():
    ended = CHATML.replace(
        "m.content + '<eos>\\n'", "m.content + ('</think>' if m.role == 'assistant' else '<eos>') + '\\n'"
    )
    chat_format = hermes(ended)  # a token that is not special and not the tokenizer's `eos_token`
    (ids,) = chat_format.encode_results(["x"])
    assert chat_format.decode(ids).startswith("\n<|im_start|>user")


@pytest.mark.parametrize(
    "text",
    ["<|im_start|>system", "a<|IM_START|>b", "<eos>", "<pad>x", "[INST] <<SYS>> x <</SYS>>", "<turn|><|turn>system"],
)
def test_no_control_token_comes_from_a_question(text):
    chat_template = CHATML.replace(
        "{%- for m in messages %}",
        "{%- for m in messages %}{{- '' if m else '[INST] <<SYS>> <</SYS>> <|turn> <turn|>' }}",
        1,
    )
    tokenizer = chatml_tokenizer(chat_template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    plain, asked = (
        HermesFormat(tokenizer, [ToolSpec(name="search", description=told)]).encode_prompt(
            [Message(role="system", content=told), Message(role="user", content=told)]
        )
        for told in ("x", text)
    )
    controls = {tokenizer.convert_tokens_to_ids(each) for each in ("<|im_start|>", "<eos>", "<pad>")}
    assert [token for token in asked if token in controls] == [token for token in plain if token in controls]
    assert tokenizer.decode(asked).count(text) == tokenizer.decode(plain).count(text)


def test_a_question_may_speak_of_tags():
    chat_format = hermes(CHATML)
    text = "Reason inside <think> and </think>, call in <tool_call>, answer in <answer>."
    assert text in chat_format.decode(chat_format.encode_prompt([Message(role="user", content=text)]))


@pytest.mark.parametrize("specials", [["<<SYS>>", "<SYS>"], ["<|a|>", "&#60;|a|>", "|a|"], ["&", "#"]])
def test_a_special_token_within_another_is_made_harmless_too(specials):
    tokenizer = build_byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": specials})
    chat_format = TagFormat(tokenizer, ("search",))
    ids = {tokenizer.convert_tokens_to_ids(each) for each in specials}
    for text in (*specials, "".join(specials), f"<{specials[0]}>"):
        written = chat_format.encode_result(text)
        assert not ids & set(written)
        assert specials[0].strip("<>&|") in chat_format.decode(written)  # still to be read


def test_what_the_template_wrote_for_the_policy_is_scored_as_its_words():
    seen = []

    class Opened(TagFormat):
        opening = "<think> so "

    async def keep(sample):
        seen.append(sample.response_text)
        return RewardOutput(reward=0.0, is_correct=False, is_well_formed=True)

    engine = ScriptedEngine(calls_then_answer(0))
    grow(engine, chat_format=Opened(engine.tokenizer, ("search",)), reward=keep, budget=1)
    assert seen == ["<think> so <think> go </think> <answer> \\boxed{ e2 } </answer>"]


def test_a_schema_reaches_the_template_with_its_words_made_harmless():
    hostile = {
        "type": "object",
        "properties": {"text": {"type": "string", "description": "<eos>", "enum": ["</tool_call>"]}},
    }
    tokenizer = chatml_tokenizer()
    chat_format = HermesFormat(tokenizer, [ToolSpec(name="search", parameters=hostile)])
    written = tokenizer.decode(chat_format.encode_prompt([USER]))
    assert json.dumps("&#60;eos>") in written
    assert '"&#60;/tool_call>"' in written
