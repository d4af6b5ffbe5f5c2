"""What is accepted as the answer of a server: every field is checked, and the answer is that of the request."""

import math
from dataclasses import replace

import pytest
import torch

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.engines.vllm.entropy import pack_entropies
from aepo_lightning.engines.vllm.requests import RequestStyle
from aepo_lightning.engines.vllm_server.answer import TokenQuery, parse_answer, request_body
from aepo_lightning.engines.vllm_server.http import EndpointError
from tests.support.vllm_server_fake import CODE, ENTROPY, FakeServer, token_at

VOCAB = 268
STYLE = RequestStyle(vocab_size=VOCAB, eos_token_ids=(1,), max_model_len=160)
QUERY = TokenQuery(token_ids=[2, 9, 16], params=SamplingParams(max_tokens=4, num_top_logprobs=2), max_tokens=4)
CHOICE = ("choices", 0)
LAST = (*CHOICE, "logprobs", "content", -1)


def answered(*changes, style=STYLE, query=QUERY, leave=None):
    """Parse the answer of a well-behaved server with other values at some places, and without one of them."""
    body = request_body(query, style)
    reply = FakeServer()._reply(body)
    for entry in reply["choices"][0]["logprobs"]["content"]:
        entry["rank"] = CODE
    for path, value in changes:
        at(reply, path)[path[-1]] = value
    if leave is not None:
        del at(reply, leave)[leave[-1]]
    return parse_answer(reply, body, query, style)


def at(nest, path):
    for key in path[:-1]:
        nest = nest[key]
    return nest


def test_a_right_answer_is_taken_as_it_is():
    answer = answered()
    assert answer.token_ids == [token_at(position) for position in range(3, 7)]
    assert answer.logprobs == [-0.5] * 4
    assert answer.entropies == [ENTROPY] * 4
    assert answer.top_logprobs == [[-0.5, -2.0]] * 4
    assert answer.versions == {"default"}


HUGE = 10**400
TOKENS = {
    "float": 5.0,
    "bool": True,
    "nan": math.nan,
    "text": "5",
    "none": None,
    "negative": -1,
    "above_the_vocabulary": VOCAB,
    "list": [5],
    "huge": HUGE,
}
NUMBERS = {
    "none": None,
    "nan": math.nan,
    "infinity": math.inf,
    "minus_infinity": -math.inf,
    "positive": 0.5,
    "slightly_positive": 0.002,
    "bool": False,
    "text": "-0.5",
    "list": [-0.5],
    "huge": -HUGE,
}
RANKS = {
    "none": None,
    "float": float(CODE),
    "bool": True,
    "plain": 3,
    "negative": -CODE,
    "more_than_the_vocabulary_has": int(pack_entropies(torch.tensor([6.0]))[0]),
    "huge": HUGE,
}


@pytest.mark.parametrize("value", TOKENS.values(), ids=TOKENS.keys())
def test_token_ids_are_whole_numbers_of_the_vocabulary(value):
    with pytest.raises(EndpointError, match="token"):
        answered(((*CHOICE, "token_ids", -1), value), ((*LAST, "token_id"), value))


@pytest.mark.parametrize("value", [*NUMBERS.values(), -9999.0], ids=[*NUMBERS.keys(), "sentinel"])
def test_logprobs_are_finite_numbers_below_zero(value):
    with pytest.raises(EndpointError):
        answered(((*LAST, "logprob"), value))


@pytest.mark.parametrize("value", NUMBERS.values(), ids=NUMBERS.keys())
def test_listed_logprobs_are_too(value):
    with pytest.raises(EndpointError):
        answered(((*LAST, "top_logprobs", -1, "logprob"), value))


@pytest.mark.parametrize("value", RANKS.values(), ids=RANKS.keys())
def test_entropies_are_those_of_some_distribution_over_the_vocabulary(value):
    with pytest.raises(EndpointError):
        answered(((*LAST, "rank"), value))


FIELDS = {
    "no_choice": (("choices",), []),
    "two_choices": (("choices",), [{}, {}]),
    "choices_of_another_type": (("choices",), {"0": {}}),
    "usage_of_another_type": (("usage",), [4]),
    "a_float_number_of_tokens": (("usage", "completion_tokens"), 4.0),
    "another_number_of_tokens": (("usage", "completion_tokens"), 3),
    "the_logprob_of_another_token": ((*LAST, "token_id"), 7),
    "negative_cached_tokens": (("usage", "prompt_tokens_details"), {"cached_tokens": -1}),
    "more_cached_tokens_than_asked": (("usage", "prompt_tokens_details"), {"cached_tokens": 4}),
    "tokens_as_text": ((*CHOICE, "token_ids"), "abcd"),
    "tokens_as_keys": ((*CHOICE, "token_ids"), {str(number): number for number in range(4)}),
    "no_finish_reason": ((*CHOICE, "finish_reason"), None),
    "an_unknown_finish_reason": ((*CHOICE, "finish_reason"), "repetition"),
    "a_list_as_finish_reason": ((*CHOICE, "finish_reason"), ["stop"]),
    "no_logprobs": ((*CHOICE, "logprobs", "content"), None),
    "logprobs_of_no_token": ((*CHOICE, "logprobs", "content"), [None] * 4),
    "no_top_logprobs": ((*LAST, "top_logprobs"), []),
    "top_logprobs_as_text": ((*LAST, "top_logprobs"), "ab"),
    "a_negative_top_token": ((*LAST, "top_logprobs", -1, "token_id"), -1),
    "a_top_token_twice": ((*LAST, "top_logprobs"), [{"token_id": 7, "logprob": -2.0}] * 2),
}


@pytest.mark.parametrize("change", FIELDS.values(), ids=FIELDS.keys())
def test_every_field_has_its_type_and_length(change):
    with pytest.raises(EndpointError):
        answered(change)


@pytest.mark.parametrize(
    "path",
    [
        ("choices",),
        ("usage",),
        ("usage", "completion_tokens"),
        (*CHOICE, "token_ids"),
        (*CHOICE, "finish_reason"),
        (*CHOICE, "logprobs"),
        (*LAST, "logprob"),
        (*LAST, "rank"),
        (*LAST, "top_logprobs"),
    ],
    ids=lambda path: str(path[-1]),
)
def test_no_field_may_be_missing(path):
    with pytest.raises(EndpointError, match=f"{path[-1]}"):
        answered(leave=path)


@pytest.mark.parametrize("reply", [None, [], "text", 5, {}], ids=str)
def test_an_answer_of_another_form_is_refused(reply):
    with pytest.raises(EndpointError):
        parse_answer(reply, request_body(QUERY, STYLE), QUERY, STYLE)


def test_the_answer_to_another_request_is_refused():
    with pytest.raises(EndpointError, match="answered the request 'generate-tokens-0000' instead of"):
        answered((("request_id",), "generate-tokens-0000"))
    with pytest.raises(EndpointError, match="answered the request None instead of"):
        answered(leave=("request_id",))
    with pytest.raises(EndpointError, match="continued a prompt of 9 tokens instead of one of 3"):
        answered((("usage", "prompt_tokens"), 9))


SPAN = {"version": "default", "start": 0, "end": 4}
VERSIONS = {
    "nothing": None,
    "none": [],
    "text": "default",
    "of_too_few_tokens": [SPAN | {"end": 3}],
    "of_too_many_tokens": [SPAN | {"end": 5}],
    "with_a_gap": [SPAN | {"end": 1}, SPAN | {"start": 2}],
    "overlapping": [SPAN | {"end": 3}, SPAN | {"start": 2}],
    "a_number": [SPAN | {"version": 7}],
    "float_positions": [SPAN | {"end": 4.0}],
}


@pytest.mark.parametrize("spans", VERSIONS.values(), ids=VERSIONS.keys())
def test_an_answer_names_the_weights_of_every_token(spans):
    with pytest.raises(EndpointError, match=r"weight|position"):
        answered(((*CHOICE, "weight_versions"), spans))


def test_an_answer_without_weight_versions_is_refused_and_one_across_a_change_of_weights_names_both():
    with pytest.raises(EndpointError, match="did not say which weights its tokens were sampled with"):
        answered(leave=(*CHOICE, "weight_versions"))
    spans = [SPAN | {"end": 1}, SPAN | {"start": 1, "version": "newer"}]
    assert answered(((*CHOICE, "weight_versions"), spans)).versions == {"default", "newer"}


def test_an_answer_that_was_cut_has_all_the_tokens_that_were_asked_for():
    three = [
        ((*CHOICE, "finish_reason"), "length"),
        ((*CHOICE, "weight_versions"), [SPAN | {"end": 3}]),
        (("usage", "completion_tokens"), 3),
    ]
    with pytest.raises(EndpointError, match=r"gave 3 tokens, but claimed 3 of at most 4 \('length'\)"):
        answered(*three, leave=(*CHOICE, "token_ids", -1))


def test_an_estimate_needs_all_the_logprobs_that_it_is_made_of():
    query = replace(QUERY, params=SamplingParams(max_tokens=4))
    style = replace(STYLE, is_exact=False)
    assert answered(style=style, query=query).entropies[0] > 0
    with pytest.raises(EndpointError, match="listed 19 log-probs of a token, but was asked for 20"):
        answered(style=style, query=query, leave=(*LAST, "top_logprobs", -1))
