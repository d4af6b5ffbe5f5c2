"""What is asked of a vLLM server for one run of tokens, and what is accepted as its answer."""

import math
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.engines.vllm.entropy import NUM_TOP, unpack_entropy
from aepo_lightning.engines.vllm.requests import RequestStyle, native_temperature, request_seed
from aepo_lightning.engines.vllm.sampler import draw_arguments
from aepo_lightning.engines.vllm_server.http import EndpointError
from aepo_lightning.errors import EngineError
from aepo_lightning.ops.entropy import top_k_entropy

_NO_LOGPROB = -9999.0
"""What a server writes where it has no log-prob, or a log-prob that is not a number."""


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
        "logprobs": _num_logprobs(query, style),
        "stop_token_ids": [] if style.eos_token_id is None else [style.eos_token_id],
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


def parse_answer(reply: Any, query: TokenQuery, style: RequestStyle) -> TokenAnswer:
    """Return what a server answered, checked.

    Raises:
        EndpointError: If something is missing, short, not a number, or outside the vocabulary.
    """
    try:
        choice = reply["choices"][0]
        token_ids, content = list(choice["token_ids"]), choice["logprobs"]["content"]
        _check_length(len(token_ids), choice["finish_reason"], reply["usage"]["completion_tokens"], query)
        _check_tokens(token_ids, content, style.vocab_size)
        scores = [_scores(entry, query, style) for entry in content]
        details = reply["usage"].get("prompt_tokens_details") or {}
        return TokenAnswer(
            token_ids=token_ids,
            logprobs=[score[0] for score in scores],
            entropies=[score[1] for score in scores],
            top_logprobs=[score[2] for score in scores] if query.params.num_top_logprobs else [],
            num_cached_tokens=int(details.get("cached_tokens") or 0),
            versions=frozenset(str(span["version"]) for span in choice.get("weight_versions") or []),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise EndpointError(f"gave a malformed answer: {error!r}") from error


def _num_logprobs(query: TokenQuery, style: RequestStyle) -> int:
    """Return how many log-probs to ask for; the server lists the sampled token as one of them."""
    num_top = query.params.num_top_logprobs
    if not style.is_exact:
        num_top = max(NUM_TOP - 1, num_top)
    return min(num_top + 1, style.vocab_size) if num_top else 0


def _check_length(number: int, reason: str, num_claimed: int, query: TokenQuery) -> None:
    if reason not in ("stop", "length"):
        raise EndpointError(f"ended a request early: {reason!r}")
    is_short = number != num_claimed or (reason == "length" and number != query.max_tokens)
    if is_short or number > query.max_tokens:
        raise EndpointError(
            f"gave {number} tokens, but claimed {num_claimed} of at most {query.max_tokens} ({reason!r})"
        )


def _check_tokens(token_ids: list[int], content: list[Any], vocab_size: int) -> None:
    if [entry["token_id"] for entry in content] != token_ids:
        raise EndpointError(f"gave {len(content)} log-probs that do not belong to its {len(token_ids)} tokens")
    if min(token_ids) < 0 or max(token_ids) >= vocab_size:
        raise EndpointError(f"gave tokens outside [0, {vocab_size}): it serves another model")


def _scores(entry: Any, query: TokenQuery, style: RequestStyle) -> tuple[float, float, list[float]]:
    """Return the log-prob, the entropy and the listed log-probs of one token."""
    logprob = float(entry["logprob"])
    if not _NO_LOGPROB < logprob < 0.01:  # rounding may lift a certain token slightly above 0
        raise EndpointError(f"gave a token without a log-prob ({logprob})")
    listed = {each["token_id"]: float(each["logprob"]) for each in entry["top_logprobs"]}
    listed[entry["token_id"]] = logprob
    ordered = sorted((value for value in listed.values() if value > _NO_LOGPROB), reverse=True)
    entropy = _exact_entropy(entry["rank"]) if style.is_exact else top_k_entropy(ordered[:NUM_TOP])
    num_top = query.params.num_top_logprobs
    top = ordered[:num_top]
    return logprob, entropy, top if not num_top or logprob in top else [*top, logprob]


def _exact_entropy(rank: int) -> float:
    try:
        entropy = unpack_entropy(rank)
    except EngineError as error:
        raise EndpointError(f"gave no entropy: {error}") from error
    if not math.isfinite(entropy):
        raise EndpointError(f"gave an entropy that is not finite ({entropy})")
    return entropy
