import pytest
from torch import nn

from aepo_lightning.checkpoints import check_architecture, check_format, check_shapes, describe
from aepo_lightning.errors import DataError
from tests.support.training import small_policy


def identity_of(policy):
    return describe(policy.build_model(), policy.config, 1, "auto")


def test_the_same_policy_passes():
    policy = small_policy()
    identity = identity_of(policy)
    check_format(identity, "it")
    check_architecture(identity, policy.config, "it")
    check_shapes(identity, policy.build_model(), "it")


def test_another_architecture_is_refused_with_every_field_that_differs():
    other = small_policy(num_hidden_layers=3, rms_norm_eps=1e-3)
    with pytest.raises(DataError, match="of another model") as caught:
        check_architecture(identity_of(small_policy()), other.config, "x.ckpt")
    assert "  num_hidden_layers: 2 in it, 3 here" in str(caught.value)
    assert "  rms_norm_eps: 1e-06 in it, 0.001 here" in str(caught.value)
    assert "hidden_size" not in str(caught.value)


def test_other_shapes_are_refused_with_the_first_of_them():
    network = small_policy(intermediate_size=16).build_model()
    network.extra = nn.Linear(2, 2, bias=False)
    with pytest.raises(DataError, match="No weight was changed") as caught:
        check_shapes(identity_of(small_policy()), network, "x.ckpt")
    assert "mlp.gate_proj.weight: [32, 16] in it, [16, 16] here" in str(caught.value)
    assert "extra.weight: none in it, [2, 2] here" in str(caught.value)


def test_a_long_list_of_differences_is_cut():
    with pytest.raises(DataError, match=r"  and \d+ more$"):
        check_shapes(identity_of(small_policy()), nn.Linear(1, 1, bias=False), "x.ckpt")


@pytest.mark.parametrize("identity", [None, {}, {"format": 2, "library": "9.9"}], ids=["none", "empty", "newer"])
def test_another_format_is_refused(identity):
    with pytest.raises(DataError, match=r"x.ckpt must have format 1, but got (None|2) \(written by version"):
        check_format(identity, "x.ckpt")
