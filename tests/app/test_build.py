"""From configuration to objects: what a part refuses reaches the user in its own words."""

import pytest
from hydra.errors import InstantiationException

from aepo_lightning.app.build import build
from aepo_lightning.errors import ConfigError
from aepo_lightning.tools import Serper


def test_a_refusal_of_a_part_comes_without_hydras_wrapping():
    with pytest.raises(ConfigError, match="`api_key` of Serper must not be empty"):
        build({"_target_": "aepo_lightning.tools.Serper", "api_key": ""})


def test_a_value_without_meaning_is_a_mistake_of_the_configuration():
    with pytest.raises(ConfigError, match=r"`top_p` must be in \(0, 1\]"):
        build({"_target_": "aepo_lightning.rollout.RolloutSettings", "top_p": 2.0})
    provider = Serper(api_key="k")
    with pytest.raises(ConfigError, match="`max_results` must be positive"):
        build({"_target_": "aepo_lightning.tools.WebSearch", "max_results": 0}, provider=provider)


def test_a_bug_of_a_part_keeps_its_traceback():
    with pytest.raises(InstantiationException, match="nonsense"):
        build({"_target_": "aepo_lightning.tools.Serper", "api_key": "k", "nonsense": 1})
