"""What a perfect policy would write is tried before the first token; what does not come back whole is one line."""

import logging
from dataclasses import replace

import pytest
from tokenizers import normalizers

from aepo_lightning.chat_formats import HermesFormat, TagFormat
from aepo_lightning.contracts.question import Message
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.contracts.reward_term import TermOutput
from aepo_lightning.errors import ConfigError, DataError, RewardError
from aepo_lightning.policy.tokenizers import PROTOCOL_TAGS, ROLE_TEMPLATE, build_byte_tokenizer, build_word_tokenizer
from aepo_lightning.rewards import FormatTerm, LengthTerm, PaperReward, RewardSum, as_reward
from aepo_lightning.rollout import ScoringSettings
from aepo_lightning.tools import DocumentSearch, PythonTool, ToolRuntime, tool
from aepo_lightning.training.round_trip import RoundTrip
from tests.support.builders import make_question
from tests.support.chatml import CHATML, WORDS, chatml_tokenizer
from tests.support.training import make_datamodule, make_run, small_policy


@tool
def multiply(a: float, b: float) -> str:
    """Multiply two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return str(a * b)


@tool
def book(places: list[str], when: dict, kind: str | None = None) -> str:
    """Book places.

    Args:
        places: Which.
        when: Any words.
        kind: Of the booking (choices: ["one way", "return"])
    """
    return f"{places} {when} {kind}"


ALL = (multiply, book, DocumentSearch(), PythonTool())
ENDED = ROLE_TEMPLATE.replace("+ '\\n'", "+ ('<end>' if message['role'] == 'assistant' else '') + '\\n'")


def trip(tokenizer=None, tools=ALL, chat_format=TagFormat.for_tools, reward=None, eos=(1,), question=None, **scored):
    tokenizer = tokenizer or build_byte_tokenizer()
    runner = ToolRuntime(tools=tools)
    return RoundTrip(
        chat_format=chat_format(tokenizer, runner.specs),
        tools=runner,
        tokenizer=tokenizer,
        eos_token_ids=eos,
        question=question or make_question(answers=("42",)),
        reward=reward or PaperReward(),
        **scored,
    )


def hermes_tokenizer(template=CHATML, extra=()):
    return build_byte_tokenizer((*WORDS, *extra), template)


@pytest.mark.parametrize("tools", [(), (multiply,), ALL], ids=len)
@pytest.mark.parametrize("name", ["tags", "hermes"])
def test_a_perfect_answer_comes_back_whole_from_both_formats(name, tools):
    tokenizer, made = (
        (build_byte_tokenizer(), TagFormat.for_tools)
        if name == "tags"
        else (chatml_tokenizer(), HermesFormat.for_tools)
    )
    assert trip(tokenizer, tools, made).run() > 0


def test_a_template_that_opens_the_thoughts_is_part_of_the_response():
    template = ROLE_TEMPLATE.replace("'assistant: '", "'assistant: <think>\\n'")
    tried = trip(build_byte_tokenizer(chat_template=template), tools=())
    assert tried.chat_format.opening == "<think>\n"
    assert tried.run() > 0
    hermes = hermes_tokenizer(CHATML.replace("assistant\\n", "assistant\\n<think>\\n"))
    assert trip(hermes, chat_format=HermesFormat.for_tools).run() > 0


def test_thoughts_that_the_template_opens_and_closes_are_not_closed_again():
    template = ROLE_TEMPLATE.replace("'assistant: '", "'assistant: <think>\\n\\n</think>\\n\\n'")
    tried = trip(build_byte_tokenizer(chat_template=template), tools=())
    assert tried.chat_format.opening == "<think>\n\n</think>\n\n"
    assert tried.run() > 0


def special_tokenizer(*texts):
    tokenizer = build_byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(texts)})
    return tokenizer


@pytest.mark.parametrize("tag", PROTOCOL_TAGS)
def test_tags_that_decoding_leaves_out_are_refused(tag):
    with pytest.raises(ConfigError, match="must not be special tokens"):
        trip(special_tokenizer(tag))


def test_thoughts_that_decoding_leaves_out_are_refused_in_every_format():
    tokenizer = chatml_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    with pytest.raises(ConfigError, match=r"<think> did not.*must not be special tokens"):
        trip(tokenizer, chat_format=HermesFormat.for_tools).run()


def test_a_message_must_end_where_a_generation_does():
    tokenizer = build_byte_tokenizer((*PROTOCOL_TAGS, "<end>"), ENDED)
    end = tokenizer.convert_tokens_to_ids("<end>")
    with pytest.raises(ConfigError, match=r"'<end>' is not among the tokens that do.*model.eos_tokens=\['<end>'\]"):
        trip(tokenizer).run()
    assert trip(tokenizer, eos=(1, end)).run() > 0
    with pytest.raises(ConfigError, match="No token stands for it"):
        trip(build_byte_tokenizer(chat_template=ENDED)).run()
    with pytest.raises(ConfigError, match="must have a token that ends its messages"):
        trip(eos=()).run()


def test_a_generation_that_ends_within_a_call_is_refused():
    tokenizer = build_byte_tokenizer()
    with pytest.raises(ConfigError, match="a call of 'multiply' must end with its last token"):
        trip(tokenizer, eos=(1, tokenizer.encode("{")[0])).run()


def test_a_vocabulary_without_a_tools_words_is_refused():
    words = (
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<result>",
        "</result>",
        "\\boxed{",
        "}",
        "42",
        "find",
        "e0",
    )
    with pytest.raises(ConfigError, match=r"(?s)'search' must come back.*no token for part of it"):
        trip(build_word_tokenizer(words), tools=(DocumentSearch(),)).run()


def test_a_tokenizer_that_loses_the_spaces_between_words_is_refused():
    tokenizer = build_byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "")
    with pytest.raises(ConfigError, match=r"'one one' became 'oneone': TokenizersBackend may .*`PreTrainedTokenizer"):
        trip(tokenizer, tools=()).run()


class LosesCalls(TagFormat):
    """A format that reads every call without its arguments."""

    def parse_calls(self, turn_text, finish_reason):
        return tuple(replace(call, arguments={}) for call in super().parse_calls(turn_text, finish_reason))


def test_calls_that_lose_their_arguments_are_refused():
    with pytest.raises(ConfigError, match=r"multiply\({}\) was read"):
        trip(chat_format=LosesCalls.for_tools, tools=(multiply,)).run()


class Fails(TagFormat):
    """A format that cannot write results."""

    def encode_results(self, texts):  # noqa: ARG002
        raise KeyError("role")


class Refuses(TagFormat):
    """A format that names what is wrong by itself."""

    def encode_results(self, texts):  # noqa: ARG002
        raise ConfigError("It says why.")


def test_a_format_that_raises_is_named():
    with pytest.raises(ConfigError, match="`chat_format` must write a result, but raised KeyError: 'role'"):
        trip(chat_format=Fails.for_tools).run()
    with pytest.raises(ConfigError, match=r"^It says why\.$"):
        trip(chat_format=Refuses.for_tools).run()


def test_an_answer_that_the_paper_reward_never_pays_is_refused():
    with pytest.raises(ConfigError, match="must give a right answer its best, but gives -1"):
        trip(question=make_question(answers=("{",))).run()


def gives_nothing(_sample):
    return 0.0


@pytest.mark.parametrize("system", [(), (Message(role="system", content="Answer in capitals."),)], ids=["not", "told"])
def test_a_reward_of_ones_own_that_pays_nothing_is_a_warning_unless_the_question_tells_the_form(system, caplog):
    question = make_question(answers=("42",))
    question = replace(question, messages=(*system, *question.messages))
    trip(reward=as_reward(gives_nothing), question=question).run()
    found = [record.message for record in caplog.records]
    assert len(found) == (0 if system else 1)
    assert all("but gives 0 to" in line and "say so in a system message" in line for line in found)


def raises(_sample):
    raise ValueError("no such\nfield")


def test_a_reward_that_raises_is_named():
    with pytest.raises(RewardError, match=r"raises` must not fail, but raised ValueError: no such"):
        trip(reward=as_reward(raises)).run()


class Abstains:
    """A reward whose judge is down."""

    checks_form = True

    async def __call__(self, sample):  # noqa: ARG002
        return RewardOutput(reward=0.0, is_correct=False, is_well_formed=True, is_scored=False, reason="It is down.")


@pytest.mark.parametrize(
    ("reward", "on_error", "why"),
    [
        (Abstains(), "fail", "It is down."),
        (as_reward(raises), "abstain", "raised ValueError"),
        (raises, -1.0, "raised"),
    ],
    ids=["abstains", "fails", "stated"],
)
def test_a_reward_that_cannot_score_now_does_not_keep_a_run_from_starting(reward, on_error, why, caplog):
    trip(reward=reward, tools=(), scoring=ScoringSettings(on_error=on_error)).run()
    assert "The reward cannot say what a right answer is worth: " in caplog.text
    assert why in caplog.text


async def is_right(_sample):
    return TermOutput(value=0.5, is_correct=True)


def test_a_sum_that_looks_at_the_form_is_held_to_it():
    total = RewardSum(terms={"form": FormatTerm(), "length": LengthTerm(), "own": is_right}, weights={"length": 0.1})
    trip(reward=total, tools=(), max_response_tokens=500).run()
    with pytest.raises(ConfigError, match="must give a right answer its best, but gives -1"):
        trip(reward=total, tools=(), max_response_tokens=500, question=make_question(answers=("{",))).run()


class Fragile:
    """A task without a first question."""

    def num_questions(self, split):  # noqa: ARG002
        return None

    def question(self, split, index):
        raise KeyError(split, index)


def test_a_task_that_raises_is_named(tmp_path):
    datamodule = make_datamodule(small_policy())
    datamodule.task = Fragile()
    with pytest.raises(DataError, match=r"Fragile` must not fail, but raised KeyError: \('train', 0\)"):
        make_run(tmp_path, datamodule=datamodule).fit()


def test_every_start_makes_the_trip_unless_it_is_told_not_to(tmp_path, caplog):
    policy = small_policy()
    broken = TagFormat(policy.tokenizer, ("search", "python"))  # the vocabulary has no word of Python
    runner = ToolRuntime(tools=(DocumentSearch(), PythonTool()))
    with pytest.raises(ConfigError, match="'python' must come back"):
        make_run(tmp_path, datamodule=make_datamodule(policy, tools=runner, chat_format=broken)).fit()
    with caplog.at_level(logging.INFO):
        make_run(tmp_path, datamodule=make_datamodule(policy)).fit()
    assert any("Round trip of a perfect answer" in record.message for record in caplog.records)
