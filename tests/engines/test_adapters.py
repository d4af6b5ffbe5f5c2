"""After an adapter alone was published, every engine generates exactly as after all merged weights were."""

import pytest
import torch

from aepo_lightning.contracts.engine import AdapterEngine
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.engines.adapters import AdapterBase
from aepo_lightning.errors import EngineError
from aepo_lightning.policy.publishing.gather import low_rank_updates, named_weights
from aepo_lightning.policy.publishing.publish import publish
from tests.support.adapters import LARGE, adapted_network, merged_by_hand, teach
from tests.support.builders import tiny_policy
from tests.support.extras import needs
from tests.support.vllm_parts import generate, make_engine, one, params, prompt, vllm_policy

pytestmark = pytest.mark.filterwarnings("ignore:::vllm", "ignore::DeprecationWarning", "ignore::FutureWarning")
needs("peft", "lora")

REQUESTS = [(prompt(length, length), params(10, seed=length)) for length in (3, 17, 40)]


@pytest.fixture(
    scope="module",
    params=["transformers", *(pytest.param(each, marks=pytest.mark.slow) for each in ("vllm", "vllm, tied"))],
)
def workplace(request):
    """An engine and the policy that it is for."""
    policy = vllm_policy(tie_word_embeddings="tied" in request.param)
    if request.param == "transformers":
        engine = TransformersEngine(policy, max_num_seqs=8, max_model_len=160)
    else:
        needs("vllm", "vllm")
        engine = make_engine(policy)
    yield engine, policy
    engine.close()


class Plain:
    """An engine that knows nothing of adapters."""

    max_model_len = 64

    def load_weights(self, weights, version):
        self.version, self.weights = version, {name: weight.clone() for name, weight in weights}

    async def generate(self, prompt_ids, params, on_probe=None):
        raise NotImplementedError

    def sleep(self):
        pass

    def close(self):
        pass


class Counting(Plain):
    """Notes what is published to an engine."""

    def __init__(self, engine):
        self.engine = engine
        self.calls = []
        self.num_bytes = 0

    @property
    def base(self):
        return self.engine.base

    def load_weights(self, weights, version):
        self.calls.append("weights")
        self.engine.load_weights(self._count(weights), version)

    def load_base(self, weights, adapted, base):
        self.calls.append("base")
        self.engine.load_base(self._count(weights), adapted, base)

    def load_adapter(self, updates, version):
        self.calls.append("adapter")
        self.engine.load_adapter(self._count_updates(updates), version)

    def _count(self, weights):
        for name, weight in weights:
            self.num_bytes += weight.nbytes
            yield name, weight

    def _count_updates(self, updates):
        for update in updates:
            self.num_bytes += update.down.nbytes + update.up.nbytes
            yield update

    def take(self):
        found = self.calls, self.num_bytes
        self.calls, self.num_bytes = [], 0
        return found


def test_tokens_and_scores_after_an_adapter_are_those_after_merged_weights(workplace):
    engine, policy = workplace
    assert isinstance(engine, AdapterEngine)
    network = adapted_network(policy)
    counting = Counting(engine)
    seen = []
    for step in range(4):  # many small steps: no rounding may add up
        teach(network, seed=step, scale=0.3)
        publish(network, counting, step)
        seen.append((generate(engine, REQUESTS), engine.weights_version))
    assert counting.calls == ["base", "adapter", "adapter", "adapter", "adapter"]
    for step, (found, version) in enumerate(seen):
        teach(network, seed=step, scale=0.3)
        engine.load_weights(merged_by_hand(network).items(), 0)
        assert found == generate(engine, REQUESTS)
        assert version == step
    assert seen[0][0] != seen[1][0]


def test_only_the_adapter_travels_while_the_engine_has_the_base(workplace):
    engine, policy = workplace
    network = adapted_network(policy)
    counting = Counting(engine)
    engine.load_weights(policy.build_model().named_parameters(), 0)
    publish(network, counting, 1)
    calls, first = counting.take()
    assert calls == ["base", "adapter"]
    publish(network, counting, 2)
    calls, later = counting.take()
    assert calls == ["adapter"]
    assert later < first / 10
    assert later == sum(update.down.nbytes + update.up.nbytes for update in low_rank_updates(network))


def test_a_base_that_changed_is_published_again(workplace):
    engine, policy = workplace
    network = adapted_network(policy)
    counting = Counting(engine)
    publish(network, counting, 0)
    counting.take()
    network.load_state_dict(network.state_dict())  # as when a checkpoint is loaded
    publish(network, counting, 1)
    assert counting.take()[0] == ["base", "adapter"]
    other = adapted_network(policy)
    publish(other, counting, 1)
    assert counting.take()[0] == ["base", "adapter"]
    engine.load_weights(policy.build_model().named_parameters(), 0)
    publish(other, counting, 1)
    assert counting.take()[0] == ["base", "adapter"]
    publish(other, counting, 2)
    assert counting.take()[0] == ["adapter"]


def test_updates_that_do_not_fit_the_base_are_refused_and_the_next_publication_repairs(workplace):
    engine, policy = workplace
    network = adapted_network(policy)
    engine.load_weights(policy.build_model().named_parameters(), 0)
    with pytest.raises(EngineError, match="Publish them with `load_base` first"):
        engine.load_adapter(low_rank_updates(network), 0)
    publish(network, engine, 1)
    expected = one(engine)
    updates = list(low_rank_updates(network))
    with pytest.raises(EngineError, match=r"must change the 6 weights .* is missing"):
        engine.load_adapter(updates[1:], 2)
    with pytest.raises(EngineError, match=r"gate_proj.weight' is not one of them"):
        engine.load_adapter(low_rank_updates(adapted_network(policy, lora=LARGE)), 2)
    publish(network, engine, 3)
    assert one(engine) == expected


def test_a_base_of_another_architecture_is_refused_and_not_kept(workplace):
    engine, policy = workplace
    other = adapted_network(vllm_policy(num_hidden_layers=3, tie_word_embeddings=policy.config.tie_word_embeddings))
    with pytest.raises(EngineError, match=r"no weight named 'model\.layers\.2\."):
        publish(other, engine, 1)
    assert engine.base == ""
    publish(adapted_network(policy), engine, 2)
    assert len(one(engine).token_ids) == 6


@pytest.mark.slow
def test_an_engine_that_keeps_no_base_gets_merged_weights():
    needs("vllm", "vllm")
    policy = vllm_policy()
    network = adapted_network(policy)
    engines = [make_engine(policy, keep_base=keep) for keep in (False, True)]
    counting = Counting(engines[0])
    publish(network, counting, 1)
    publish(network, counting, 2)
    publish(network, engines[1], 2)
    assert counting.calls == ["weights", "weights"]
    assert generate(engines[0], REQUESTS) == generate(engines[1], REQUESTS)
    for engine in engines:
        engine.close()


def test_an_engine_without_adapters_gets_merged_weights():
    network, engine = adapted_network(), Plain()
    publish(network, engine, 1)
    expected = merged_by_hand(network)
    assert engine.weights.keys() == expected.keys()
    assert all(torch.equal(engine.weights[name], expected[name]) for name in expected)


def test_a_base_in_a_coarser_precision_than_the_engines_is_merged_in_its_own():
    policy = tiny_policy()
    network = adapted_network(policy)
    base = {name: weight.bfloat16() for name, weight in policy.build_model().named_parameters()}
    engine = TransformersEngine(policy, max_num_seqs=2, max_model_len=64)
    updates = list(low_rank_updates(network))
    engine.load_base(base.items(), [update.name for update in updates], "coarse")
    engine.load_adapter(updates, 1)
    for update in updates:
        found = engine._model.get_parameter(update.name)
        expected = (base[update.name].float() + update.scale * (update.up @ update.down)).bfloat16()
        assert torch.equal(found, expected.float())


def test_weights_may_be_kept_on_another_device_and_are_copies():
    weight = torch.ones(2, 2)
    base = AdapterBase("cpu")
    assert list(base.keeping([("a", weight)], ["a"], "first")) == [("a", weight)]
    weight.zero_()
    assert base._weights["a"].sum() == 4
    with pytest.raises(EngineError, match="it has no 'b'"):
        list(base.keeping([("a", weight)], ["a", "b"], "second"))
    assert base.name == ""


def test_merged_weights_are_those_that_are_named(workplace):
    _, policy = workplace
    network = adapted_network(policy)
    found, expected = dict(named_weights(network)), merged_by_hand(network)
    assert found.keys() == expected.keys() == dict(policy.build_model().named_parameters()).keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
