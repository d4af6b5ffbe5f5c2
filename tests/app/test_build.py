"""From configuration to objects: what a part refuses reaches the user in its own words."""

import pytest
from hydra.errors import InstantiationException

from aepo_lightning.app.build import build, build_engine
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.errors import ConfigError
from aepo_lightning.tools import Serper
from tests.support.builders import tiny_policy
from tests.support.composed import composed


def test_a_refusal_of_a_part_comes_without_hydras_wrapping():
    with pytest.raises(ConfigError, match="`api_key` of Serper must not be empty"):
        build({"_target_": "aepo_lightning.tools.Serper", "api_key": ""})


def test_a_value_without_meaning_is_a_mistake_of_the_configuration():
    with pytest.raises(ConfigError, match=r"`top_p` must be in \(0, 1\]"):
        build({"_target_": "aepo_lightning.rollout.RolloutSettings", "top_p": 2.0})
    provider = Serper(api_key="k")
    with pytest.raises(ConfigError, match="`max_results` must be positive"):
        build({"_target_": "aepo_lightning.tools.WebSearch", "max_results": 0}, provider=provider)


def test_what_somebody_elses_part_raises_is_one_line_with_its_name():
    rule = "must not fail when it is built, but raised TypeError"
    with pytest.raises(ConfigError, match=rf"^`datetime\.timedelta` {rule}"):
        build({"_target_": "datetime.timedelta", "days": "x"})
    with pytest.raises(ConfigError, match=rf"^`fractions\.Fraction` {rule}"):
        build({"_target_": "fractions.Fraction", "denominator": None}, numerator=[])


def test_a_bug_of_a_part_keeps_its_traceback():
    with pytest.raises(InstantiationException, match="nonsense"):
        build({"_target_": "aepo_lightning.tools.Serper", "api_key": "k", "nonsense": 1})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), "cpu"),
        (("trainer.accelerator=gpu",), "auto"),
        (("engine.device=cuda:1",), "cuda:1"),
    ],
    ids=str,
)
def test_an_engine_computes_where_the_trainer_does_unless_it_is_told_where(overrides, expected, monkeypatch):
    cfg, policy, built = composed(*overrides), tiny_policy(), {}
    engine = TransformersEngine(policy, max_num_seqs=1, max_model_len=8)
    monkeypatch.setattr("aepo_lightning.app.build.build", lambda node, **extra: built.update(node, **extra) or engine)
    assert build_engine(cfg, policy) is engine
    assert (built["device"], built["policy"]) == (expected, policy)
    assert cfg.engine.device in ("auto", expected)  # what is saved with the run is what was asked for
