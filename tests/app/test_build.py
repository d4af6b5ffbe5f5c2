"""From configuration to objects: what a part refuses reaches the user in its own words."""

import pytest
from hydra.errors import InstantiationException

from aepo_lightning.app.build import build
from aepo_lightning.errors import ConfigError


def test_a_refusal_of_a_part_comes_without_hydras_wrapping():
    with pytest.raises(ConfigError, match="`api_key` of Serper must not be empty"):
        build({"_target_": "aepo_lightning.tools.Serper", "api_key": ""})


def test_a_bug_of_a_part_keeps_its_traceback():
    with pytest.raises(InstantiationException, match="nonsense"):
        build({"_target_": "aepo_lightning.tools.Serper", "api_key": "k", "nonsense": 1})
