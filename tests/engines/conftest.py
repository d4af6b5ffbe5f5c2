"""Fixtures of the vLLM tests; nothing starts before a test asks for it."""

import pytest

from tests.support.vllm_parts import make_engine, vllm_policy


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def pair(request):
    """An engine with its first weights, and the policy that they come from."""
    policy = vllm_policy(tie_word_embeddings=request.param)
    engine = make_engine(policy)
    yield engine, policy
    engine.close()


@pytest.fixture(scope="module")
def engine():
    engine = make_engine()
    yield engine
    engine.close()


@pytest.fixture
def plain(engine):
    """The shared engine with the weights of the tiny policy."""
    engine.load_weights(vllm_policy().build_model().named_parameters(), 0)
    return engine
