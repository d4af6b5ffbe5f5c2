"""Decoding steps of fixed shape on tiny models of every family that the engine computes exactly."""

import pytest

from tests.support.families import EXACT, FAMILIES, build_policy, engine
from tests.support.static_engine import static_engine, traced

SERVED = [name for name, family in FAMILIES.items() if family.engine == EXACT]


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVED)
def test_steps_are_captured_and_exact_unless_routers_choose_experts(name, monkeypatch, caplog):
    built = []

    def build(policy, **sizes):
        built.append(static_engine(monkeypatch, policy, traced, **sizes))
        return built[0]

    assert engine(build_policy(name, FAMILIES[name]), build) == EXACT
    if built[0]._decoder is None:
        assert "routers choose among 4 experts" in caplog.text
        assert "moe" in name or name == "mixtral"
