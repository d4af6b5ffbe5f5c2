"""What is asked of a vLLM server for one run of tokens, and what is accepted as its answer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.engines.vllm.entropy import NUM_TOP, unpack_entropy
from aepo_lightning.engines.vllm.requests import RequestStyle, native_temperature, request_seed
from aepo_lightning.engines.vllm.sampler import draw_arguments
from aepo_lightning.engines.vllm_server.http import ID_PREFIX, EndpointError
from aepo_lightning.errors import EngineError
from aepo_lightning.ops.entropy import top_k_entropy

_NO_LOGPROB = -9999.0
"""What a server writes where it has no log-prob, or a log-prob that is not a number."""
_ROUNDING = 1e-3
"""How far above 0 rounding may lift the log-prob of a certain token, and an entropy above its largest value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenQuery:
    """A run of tokens to be sampled."""

    token_ids: list[int]
    """The prompt and what was sampled before."""
    params: SamplingParams
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAnswer:
    """A run of sampled tokens. The lists have one entry per token."""

    token_ids: list[int]
    logprobs: list[float]
    entropies: list[float]
    top_logprobs: list[list[float]]
    num_cached_tokens: int
    versions: frozenset[str]
    """Names of the weights that the tokens were sampled with."""


def request_body(query: TokenQuery, style: RequestStyle) -> dict[str, Any]:
    """Return the body of a request to `/inference/v1/generate`."""
    params = query.params
    sampling: dict[str, Any] = {
        "max_tokens": query.max_tokens,
        "temperature": native_temperature(params),
        "top_p": params.top_p,
        "top_k": params.top_k,
        "repetition_penalty": params.repetition_penalty,
        "logprobs": _num_logprobs(query, style),
        "stop_token_ids": list(style.eos_token_ids),
        "ignore_eos": True,
        "detokenize": bool(params.stop),
    }
    if params.stop:
        sampling |= {
            "stop": list(params.stop),
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
        }
    if style.is_exact:
        sampling["extra_args"] = draw_arguments(params)
    else:  # a generator of vLLM starts anew with each request: a branch must not repeat the noise of its trunk
        sampling["seed"] = request_seed(params.seed, len(query.token_ids))
    return {"request_id": uuid4().hex, "token_ids": query.token_ids, "sampling_params": sampling}


def parse_answer(reply: Any, body: Mapping[str, Any], query: TokenQuery, style: RequestStyle) -> TokenAnswer:
    """Return what a server answered, checked field by field.

    Args:
        reply: What it sent.
        body: What it was sent, from `request_body`.
        query: What `body` asks for.
        style: As for `request_body`.

    Raises:
        EndpointError: If a field is missing, of another type, short, not finite, or outside its range, or the answer
            belongs to another request or does not name the weights that it was sampled with.
    """
    try:
        _check_request(reply, body, query)
        (choice,) = reply["choices"]
        token_ids, content, usage = choice["token_ids"], choice["logprobs"]["content"], reply["usage"]
        _check_length(len(token_ids), choice["finish_reason"], usage["completion_tokens"], query)
        _check_tokens(token_ids, content, style.vocab_size)
        scores = [_scores(entry, query, style) for entry in content]
        return TokenAnswer(
            token_ids=token_ids,
            logprobs=[score[0] for score in scores],
            entropies=[score[1] for score in scores],
            top_logprobs=[score[2] for score in scores] if query.params.num_top_logprobs else [],
            num_cached_tokens=_num_cached(usage, query),
            versions=_versions(choice.get("weight_versions"), len(token_ids)),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise EndpointError(f"gave a malformed answer: {error!r:.200}") from error


def _num_logprobs(query: TokenQuery, style: RequestStyle) -> int:
    """Return how many log-probs to ask for; the server lists the sampled token as one of them."""
    num_top = query.params.num_top_logprobs
    if not style.is_exact:
        num_top = max(NUM_TOP - 1, num_top)
    return min(num_top + 1, style.vocab_size) if num_top else 0


def _integer(value: Any, name: str) -> int:
    if type(value) is not int:  # a bool is an int, and 5.0 equals one
        raise EndpointError(f"gave {name} that must be a whole number, but is {value!r:.40}")
    return value


def _number(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise EndpointError(f"gave {name} that must be a finite number, but is {value!r:.40}")
    return float(value)


def _list(value: Any, name: str) -> list[Any]:
    if type(value) is not list:
        raise EndpointError(f"gave {name} that must be a list, but is {value!r:.40}")
    return value


def _check_request(reply: Any, body: Mapping[str, Any], query: TokenQuery) -> None:
    """See that an answer belongs to the request: a proxy may mix them up."""
    own, found = body["request_id"], reply.get("request_id")
    if found not in (own, ID_PREFIX + own):
        raise EndpointError(
            f"answered the request {found!r:.80} instead of {own!r}. A proxy before it must leave the header "
            "X-Request-Id as it is"
        )
    length = reply["usage"].get("prompt_tokens", len(query.token_ids))
    if _integer(length, "a number of prompt tokens") != len(query.token_ids):
        raise EndpointError(f"continued a prompt of {length} tokens instead of one of {len(query.token_ids)}")


def _check_length(number: int, reason: Any, claimed: Any, query: TokenQuery) -> None:
    if reason not in ("stop", "length"):
        raise EndpointError(f"ended a request early: {reason!r:.40}")
    num_claimed = _integer(claimed, "a number of tokens")
    is_short = number != num_claimed or (reason == "length" and number != query.max_tokens)
    if is_short or not 0 < number <= query.max_tokens:
        raise EndpointError(
            f"gave {number} tokens, but claimed {num_claimed} of at most {query.max_tokens} ({reason!r})"
        )


def _check_tokens(token_ids: Any, content: Any, vocab_size: int) -> None:
    for token in _list(token_ids, "token ids"):
        if not 0 <= _integer(token, "a token id") < vocab_size:
            raise EndpointError(f"gave tokens outside [0, {vocab_size}): it serves another model")
    if [_integer(entry["token_id"], "a token id") for entry in _list(content, "log-probs")] != token_ids:
        raise EndpointError(f"gave {len(content)} log-probs that do not belong to its {len(token_ids)} tokens")


def _scores(entry: Any, query: TokenQuery, style: RequestStyle) -> tuple[float, float, list[float]]:
    """Return the log-prob, the entropy and the listed log-probs of one token."""
    logprob = _number(entry["logprob"], "a log-prob")
    if not _NO_LOGPROB < logprob < _ROUNDING:
        raise EndpointError(f"gave a token without a log-prob ({logprob})")
    listed = _listed(entry) | {entry["token_id"]: logprob}
    num_top = query.params.num_top_logprobs
    num_needed = min(num_top if style.is_exact else max(num_top, NUM_TOP), style.vocab_size)
    if len(listed) < num_needed:
        raise EndpointError(f"listed {len(listed)} log-probs of a token, but was asked for {num_needed}")
    ordered = sorted((value for value in listed.values() if value > _NO_LOGPROB), reverse=True)
    entropy = _exact_entropy(entry["rank"], style.vocab_size) if style.is_exact else top_k_entropy(ordered[:NUM_TOP])
    top = ordered[:num_top]
    return logprob, entropy, top if not num_top or logprob in top else [*top, logprob]


def _listed(entry: Any) -> dict[int, float]:
    listed: dict[int, float] = {}
    for each in _list(entry["top_logprobs"], "top log-probs"):
        token, logprob = _integer(each["token_id"], "a token id"), _number(each["logprob"], "a log-prob")
        if token < 0 or token in listed or logprob >= _ROUNDING:
            raise EndpointError(f"listed the log-prob {logprob} of token {token}, which cannot be or was there before")
        listed[token] = logprob
    return listed


def _exact_entropy(rank: Any, vocab_size: int) -> float:
    try:
        entropy = unpack_entropy(_integer(rank, "a rank"))
    except EndpointError:
        raise
    except EngineError as error:
        raise EndpointError(f"gave no entropy: {error}") from error
    if not entropy <= math.log(vocab_size) + _ROUNDING:
        raise EndpointError(f"gave an entropy of {entropy} nats, more than {vocab_size} tokens can have")
    return entropy


def _num_cached(usage: Any, query: TokenQuery) -> int:
    """Return how many prompt tokens came from the cache; servers may leave that out."""
    number = _integer((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0, "a number of cached tokens")
    if not 0 <= number <= len(query.token_ids):
        raise EndpointError(f"claims {number} cached tokens of a prompt of {len(query.token_ids)}")
    return number


def _versions(spans: Any, number: int) -> frozenset[str]:
    """Return the names of the weights that sampled so many tokens, each of which must belong to one span."""
    if not spans:
        raise EndpointError("did not say which weights its tokens were sampled with (`weight_versions`)")
    end = 0
    for span in _list(spans, "weight versions"):
        start, start_of_next = _integer(span["start"], "a position"), _integer(span["end"], "a position")
        if start != end or start_of_next <= start or type(span["version"]) is not str:
            raise EndpointError(f"gave weight versions that do not follow each other: {spans!r:.200}")
        end = start_of_next
    if end != number:
        raise EndpointError(f"gave weight versions of {end} tokens, but {number} tokens")
    return frozenset(span["version"] for span in spans)
