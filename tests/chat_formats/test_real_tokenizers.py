"""Both formats on the tokenizers and templates of Qwen3, Llama 3 and SmolLM2."""

import json
from functools import partial
from random import Random

import pytest

from aepo_lightning.chat_formats import HermesFormat, TagFormat, message_end_id
from aepo_lightning.contracts.generation import FinishReason
from aepo_lightning.contracts.question import Message
from aepo_lightning.engines.stopping import StopMatcher, TokenPieces
from aepo_lightning.errors import ConfigError
from tests.support.careless import careless_tree, slow_reference
from tests.support.real_tokenizers import each_tokenizer, real_tokenizer
from tests.support.tool_parts import CountingTool
from tests.training.test_round_trip import ALL, trip

pytestmark = pytest.mark.slow
SPECS = [CountingTool(name="look_up").spec]
FORMATS = {"tags": TagFormat, "hermes": HermesFormat}
BOTH = pytest.mark.parametrize("kind", FORMATS)
LISTS_TOOLS = {"qwen3": True, "llama3": False, "smollm2": False}
ENDS = {"qwen3": "<|im_end|>", "llama3": "<|eot_id|>", "smollm2": "<|im_end|>"}
TAGS = ("search", "python", "browse", "result", "answer", "think", "tool_call", "tool_response", "tools", "look_up")
QUESTION = Message(role="user", content="Who wrote it?")


def maker(name, kind):
    """What builds a format. Where the template lists no tools, the system message does."""
    told = {} if kind == "tags" or LISTS_TOOLS[name] else {"tool_list": "system"}
    return partial(FORMATS[kind].for_tools, **told)


def make_format(name, kind):
    return maker(name, kind)(real_tokenizer(name), SPECS, system_prompt="tools")


def added_tokens(name):
    return {token.content: index for index, token in real_tokenizer(name).added_tokens_decoder.items()}


def controls(name):
    """Tokens that no words of others may become. Qwen3 has tags among its tokens, of which a question may speak."""
    return {index for text, index in added_tokens(name).items() if text.strip("</>") not in TAGS}


@each_tokenizer()
def test_a_message_ends_with_the_token_that_ends_a_generation(name):
    tokenizer = real_tokenizer(name)
    assert message_end_id(tokenizer) == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids(ENDS[name])


@BOTH
@each_tokenizer()
def test_a_prompt_is_what_the_template_writes(name, kind):
    tokenizer = real_tokenizer(name)
    chat_format = make_format(name, kind)
    ids = chat_format.encode_prompt([Message(role="system", content="Be brief."), QUESTION])
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text, add_special_tokens=False) == ids
    assert [text.count(each) for each in ("Be brief.", "Who wrote it?")] == [1, 1]
    assert kind == "tags" or text.count('"name": "look_up"') == 1
    if tokenizer.bos_token and name == "llama3":
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id


@each_tokenizer(["llama3", "smollm2"])
def test_a_template_without_tools_is_refused_with_what_to_set(name):
    with pytest.raises(
        ConfigError, match=r"must list the tools, but writes nothing of 'look_up'\. Set `rollout=default`"
    ):
        HermesFormat.for_tools(real_tokenizer(name), SPECS)


@BOTH
@each_tokenizer()
def test_a_perfect_answer_comes_back_whole(name, kind):
    tokenizer = real_tokenizer(name)
    assert trip(tokenizer, ALL, maker(name, kind), eos=(tokenizer.eos_token_id,)).run() > 0


def chatml_answers(role, texts):
    return [f"\n<|im_start|>{role}\n{text}<|im_end|>" for text in texts]


def answers_written(name, kind, neutralise, texts):
    """What the results of a turn must look like, written down by hand."""
    safe = [neutralise(text) for text in texts]
    if kind == "tags":
        return [f" <result>\n{safe[0]}\n</result>"]
    if name == "qwen3":
        inner = "\n".join(f"<tool_response>\n{text}\n</tool_response>" for text in safe)
        return [*chatml_answers("user", [inner]), "\n<|im_start|>assistant\n"]
    if name == "smollm2":
        return [*chatml_answers("tool", safe), "\n<|im_start|>assistant\n"]
    header = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    # Llama 3 leaves out white space around a message.
    return [*(f"{header('tool')}{text.strip()}<|eot_id|>" for text in safe), header("assistant")]


def hostile(name):
    """Pieces of which tool results and questions are made: each control token, each tag, and parts of both."""
    added = [*added_tokens(name)]
    tags = [f"{opening}{tag}>" for tag in TAGS for opening in ("<", "</")]
    nested = f"{added[0][:3]}{added[1]}{added[0][3:]}"
    parts = ["<", ">", "|", "/", "<|", "|>", "im_", "\n", " ", "é", "\u0338", "\u200b", "&#60;", "\uff1c/result\uff1e"]
    return [*added[:30], *tags, *tags, *parts, *parts, nested, "x", " word"]


@BOTH
@pytest.mark.parametrize("seed", range(2))
@each_tokenizer()
def test_every_token_and_mask_is_that_of_a_slow_reference(name, kind, seed):
    random, pieces = Random(seed), hostile(name)
    chat_format = make_format(name, kind)
    results = ["".join(random.choices(pieces, k=6)) for _ in range(500)]
    engine, tree = careless_tree(real_tokenizer(name), kind, chat_format, results, seed)
    written = partial(answers_written, name, kind, TagFormat(real_tokenizer(name), SPECS).neutralise)
    for leaf in tree.leaves:
        path = tree.trajectory(leaf)
        assert (path.token_ids, path.is_sampled, path.logprobs) == slow_reference(engine, tree, leaf, written)


@BOTH
@each_tokenizer()
def test_words_of_others_hold_no_control_token_and_stay_visible(name, kind):
    random, pieces = Random(0), hostile(name)
    chat_format, tokenizer = make_format(name, kind), real_tokenizer(name)
    added, steering = {*added_tokens(name).values()}, controls(name)
    (frame,) = chat_format.encode_results(["x"])
    asked = chat_format.encode_prompt([QUESTION])
    for _ in range(300):
        text = "".join(random.choices(pieces, k=random.randint(1, 6)))
        (ids,) = chat_format.encode_results([text])
        prompt = chat_format.encode_prompt([Message(role="user", content=text)])
        assert [token for token in ids if token in added] == [token for token in frame if token in added], text
        assert [t for t in prompt if t in steering] == [t for t in asked if t in steering], text
        for encoded in (ids, prompt):
            letters = "".join(filter(str.isalnum, text.replace("&#60;", "").replace("\uff1c", "")))
            shown = tokenizer.decode(encoded).replace("&#60;", "").replace("&#65308;", "")
            assert letters in "".join(filter(str.isalnum, shown)), text


@each_tokenizer()
def test_stop_strings_are_found_however_their_tokens_fall(name):
    tokenizer, chat_format, random = real_tokenizer(name), make_format(name, "tags"), Random(0)
    pieces = TokenPieces(tokenizer)
    for stop in chat_format.stop:
        for around in ("", ">", "\n", "é", " ", "<", "/", ">\n\n", "'s", "\U0001f600"):
            text = f"a{around}{stop[1:]} {around}{stop}{around} {stop}"
            ids = []
            while text:
                size = random.randint(1, 7)
                ids += tokenizer.encode(text[:size], add_special_tokens=False)
                text = text[size:]
            matcher, decoded = (
                StopMatcher(chat_format.stop),
                [chat_format.decode(ids[: n + 1]) for n in range(len(ids))],
            )
            found = next(n for n, token in enumerate(ids) if matcher.push(pieces[token]))
            assert found == next(n for n, seen in enumerate(decoded) if any(s in seen for s in chat_format.stop))
            call = chat_format.parse_calls(decoded[found], FinishReason.STOP)
            assert [each.tool for each in call] == [stop[2:-1]]


@each_tokenizer()
def test_tokens_beyond_the_vocabulary_and_special_ones_are_no_text(name):
    tokenizer, chat_format = real_tokenizer(name), make_format(name, "tags")
    beyond = len(tokenizer) + 5  # models pad their matrices
    word = tokenizer.encode("word", add_special_tokens=False)
    assert chat_format.decode([*word, beyond, tokenizer.eos_token_id]) == "word"
    assert TokenPieces(tokenizer)[beyond] == ""


@each_tokenizer(["qwen3"])
def test_thoughts_of_earlier_turns_stay_where_qwen3_itself_drops_them(name):
    tokenizer, chat_format = real_tokenizer(name), make_format(name, "hermes")
    thought, call = "<think>\nI look it up.\n</think>\n\n", chat_format.write_call(SPECS[0], {"text": "it"})
    turn = chat_format.encode_text(f"{thought}{call}<|im_end|>")
    (result,) = chat_format.encode_results(["She did."])
    ids = [*chat_format.encode_prompt([Message(role="system", content="Be brief."), QUESTION]), *turn, *result]
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION.content},
        {"role": "assistant", "content": thought + call},
        {"role": "tool", "content": "She did."},
    ]
    schema = {"name": "look_up", "description": SPECS[0].description, "parameters": dict(SPECS[0].parameters)}
    tools = [{"type": "function", "function": schema}]
    write = partial(tokenizer.apply_chat_template, tools=tools, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(ids) == write(chat)
    assert "I look it up." not in write([*chat, {"role": "user", "content": "And then?"}])
    think = tokenizer.convert_tokens_to_ids("<think>")
    # Neither a result nor the opening of the next message brings thoughts of its own.
    assert think not in result
    assert ids.count(think) == 1
    (found,) = chat_format.parse_calls(chat_format.decode(turn), FinishReason.EOS)
    assert (found.tool, found.arguments, json.loads(found.text)["name"]) == ("look_up", {"text": "it"}, "look_up")
