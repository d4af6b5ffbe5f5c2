"""The network of a module: what it is made of on whatever device, and how the datamodule finds it."""

from inspect import getattr_static

import pytest
import torch
from typing_extensions import get_protocol_members

from aepo_lightning.objectives import KLPenalty
from aepo_lightning.training.trained_policy import TrainedPolicy, as_trained_policy
from tests.support.training import built_module, make_module, small_policy


def test_the_device_of_new_tensors_does_not_matter_to_the_weights():
    # Lightning makes the GPU their default while the model is built.
    policy = small_policy()
    with torch.device("meta"):
        module = built_module(policy=policy, kl_penalty=KLPenalty(coefficient=0.1))
    expected = policy.build_model().state_dict()
    for network in (module.trained_network(), *module._reference):
        torch.testing.assert_close(network.model.state_dict(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("is_built", [False, True], ids=["before", "after"])
def test_the_module_is_known_by_what_its_class_has(is_built):
    module = built_module() if is_built else make_module()
    for name in get_protocol_members(TrainedPolicy):
        getattr_static(module, name)  # all that `isinstance` looks at from Python 3.12 on
    assert as_trained_policy(module) is module
