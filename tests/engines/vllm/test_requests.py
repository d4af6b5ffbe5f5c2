"""What comes out of vLLM for one request, token by token. No vLLM needed."""

import math
from types import SimpleNamespace

import pytest
import torch

from aepo_lightning.engines.vllm.entropy import pack_entropies
from aepo_lightning.engines.vllm.requests import RequestStyle
from aepo_lightning.errors import EngineError

STYLE = RequestStyle(vocab_size=8, eos_token_ids=(1,), max_model_len=16)
CODE = int(pack_entropies(torch.tensor([1.25]))[0])


def output(token=5, logprob=-0.5, rank=CODE):
    flat = SimpleNamespace(token_ids=[token], logprobs=[logprob], ranks=[rank], start_indices=[0], end_indices=[1])
    return SimpleNamespace(token_ids=[token], logprobs=flat)


def test_a_token_comes_with_its_scores():
    (token,) = STYLE.tokens(output(), 0)
    assert (token.token_id, token.logprob, token.entropy) == (5, -0.5, 1.25)


@pytest.mark.parametrize(
    "fields",
    [{"logprob": math.nan}, {"logprob": -math.inf}, {"logprob": math.inf}, {"token": 8}, {"token": -1}, {"rank": 3}],
    ids=str,
)
def test_a_token_that_no_model_can_have_sampled_is_an_error_and_is_not_trained_on(fields):
    with pytest.raises(EngineError):
        list(STYLE.tokens(output(**fields), 0))
