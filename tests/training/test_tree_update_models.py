"""The contract of packed training for the architectures of `conf/model` and for scaled rotary embeddings."""

import pytest
import torch
from omegaconf import OmegaConf

from aepo_lightning.errors import TrainingError
from aepo_lightning.objectives import KLPenalty
from aepo_lightning.ops.tree_packing import pack_rows
from aepo_lightning.policy.network import PolicyNetwork
from tests.conf.test_configs import CONF
from tests.support.packing import PACKINGS, branched_trees, grouped_policy, update
from tests.support.slow import quick
from tests.training.test_tree_update import FULL, TOLERANCES, check_equal

# What makes a model small; all else is the architecture's own.
SIZES = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"}
SIZES |= {"head_dim", "max_position_embeddings", "vocab_size"}
BIG = sorted(
    path.stem
    for path in (CONF / "model").glob("*.yaml")
    if "architecture:" in path.read_text() and not path.stem.startswith("tiny")
)


def small_architecture(name):
    """The architecture of a file under `conf/model`, in tiny form."""
    file = OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{name}.yaml"))
    fields = file.get("model", file)["architecture"]
    return grouped_policy(**{key: value for key, value in fields.items() if key not in SIZES})


@torch.no_grad()
def with_biases(policy):
    """The same policy with biases that are not zero, where it has any."""
    build = policy.build_model

    def build_model():
        model = build()
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        return model

    policy.build_model = build_model
    return policy


@pytest.mark.parametrize("dtype", quick(dict(zip(["float64", "float32"], TOLERANCES, strict=True)), "float64"))
@pytest.mark.parametrize("name", BIG)
def test_every_architecture_of_the_configs_trains_the_same_on_packed_tokens(name, dtype):
    options = FULL | {"policy": with_biases(small_architecture(name)), "dtype": dtype, "gradient_checkpointing": True}
    trees = branched_trees(seed=BIG.index(name))
    expected = update("padded", trees, **options)
    for packing in PACKINGS:
        found = update(packing, trees, **options)
        check_equal(found, expected, TOLERANCES[dtype])
        assert found["num_micro_batches"] > 1


ROPES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_scaled_rotary_embeddings_turn_by_the_depth_of_a_token(rope, packing):
    # Trajectories that are longer than the positions that the scaling starts from.
    trees = branched_trees(num_trees=2, num_leaves=4, longest=12)
    assert max(len(path.token_ids) for tree in trees for path in tree.trajectories()) > 16
    policy = grouped_policy(rope_parameters={"rope_theta": 100.0} | rope)
    options = {"policy": policy, "dtype": torch.float64, "kl_penalty": KLPenalty(coefficient=0.1)}
    check_equal(update(packing, trees, **options), update("padded", trees, **options), 1e-10)


MOVING = {
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


def score(rope, longest):
    policy = grouped_policy(rope_parameters={"rope_theta": 100.0} | rope, max_position_embeddings=16)
    ids = torch.arange(longest)[None] % 9
    mask = torch.ones(1, longest - 1, dtype=torch.bool)
    network = PolicyNetwork(policy.build_model())
    found = network(ids, mask, packed=pack_rows(ids, torch.tensor([longest]), mask))
    return found.logprobs, network(ids, mask).logprobs


@pytest.mark.parametrize("rope", MOVING.values(), ids=MOVING)
def test_rotary_embeddings_that_depend_on_the_batch_are_refused_where_they_would(rope):
    found, expected = score(rope, 16)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(TrainingError, match=r"at most 16 tokens .* but one has 17. .*packing=padded"):
        score(rope, 17)
