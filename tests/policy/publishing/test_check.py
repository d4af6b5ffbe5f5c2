"""The check after each publication: equal weights pass, other weights stop the run, however they came to be other."""

import pytest
import torch

from aepo_lightning.engines import TransformersEngine
from aepo_lightning.errors import EngineError
from aepo_lightning.policy.publishing.check import PublicationCheck
from aepo_lightning.policy.publishing.publish import publish
from tests.support.training import built_module, perturb

PROMPT = [5, 6, 7, 8]


class Deaf(TransformersEngine):
    """Takes its first weights and none after them, and keeps its answers."""

    def load_weights(self, weights, version):
        if not hasattr(self, "has_loaded"):
            super().load_weights(weights, version)
        self.has_loaded = True


class Reporting(TransformersEngine):
    """Adds a constant to its entropies and can fall back to an estimate."""

    error, entropy_source, reasons = 0.5, "exact", ()

    async def generate(self, prompt_ids, params, on_probe=None):
        generation = await super().generate(prompt_ids, params, on_probe)
        generation.entropies[:] = [entropy + self.error for entropy in generation.entropies]
        return generation

    def fall_back_to_top_k(self, reason):
        self.entropy_source, self.reasons = "top_20", (*self.reasons, reason)


def make(kind=TransformersEngine, **options):
    module = built_module()
    module.eval()
    check = PublicationCheck(**({"max_logprob_gap": 1e-4, "max_entropy_gap": 1e-4} | options))
    return module, kind(module.policy, max_num_seqs=4, max_model_len=64), check


def run(module, engine, check, version=0, temperature=1.0):
    publish(module.network, engine, version)
    return check(engine, module.score, PROMPT, temperature, version)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_equal_weights_pass_and_the_gap_is_rounding(temperature):
    module, engine, check = make()
    stamp = run(module, engine, check, version=3, temperature=temperature)
    assert stamp.version == 3
    # Two float32 computations of the same sums in another order.
    assert 0 <= check.metrics["logprob_gap"] < 1e-5
    assert 0 <= check.metrics["entropy_gap"] < 1e-5


def test_every_publication_of_changing_weights_passes_and_gets_a_digest_of_its_own():
    module, engine, check = make()
    stamps = []
    for version in range(3):
        stamps.append(run(module, engine, check, version))
        perturb(module.network, seed=version)
    assert len({stamp.digest for stamp in stamps}) == 3


def test_the_same_weights_have_the_same_digest_in_another_process_of_the_run():
    assert run(*make()).digest == run(*make()).digest


def test_other_weights_stop_the_run():
    module, engine, check = make()
    publish(module.network, engine, 0)
    perturb(module.network)
    with pytest.raises(EngineError, match=r"must be within 0.0001 nats of the trainer's, .* over a probe is 0\.\d+"):
        check(engine, module.score, PROMPT, 1.0, 1)


def test_a_stale_engine_within_the_bound_is_recognised_by_its_unchanged_answer():
    module, engine, check = make(Deaf, max_logprob_gap=5.0, max_entropy_gap=5.0)
    run(module, engine, check)
    perturb(module.network)
    with pytest.raises(EngineError, match="the old one bit by bit, while the trainer's log-probs of it moved by"):
        run(module, engine, check, version=1)


def test_publishing_unchanged_weights_again_is_not_stale():
    module, engine, check = make(Deaf)
    assert run(module, engine, check, 0) == run(module, engine, check, 0)


def test_log_probs_that_are_not_numbers_stop_the_run():
    module, engine, check = make()
    publish(module.network, engine, 0)
    with torch.no_grad():
        module.network.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(EngineError, match="over a probe is nan"):
        check(engine, module.score, PROMPT, 1.0, 0)


def test_wrong_entropies_make_the_engine_fall_back_and_say_why():
    module, engine, check = make(Reporting)
    run(module, engine, check)
    assert engine.entropy_source == "top_20"
    assert "difference over a probe is 0.5" in engine.reasons[0]
    run(module, engine, check, 1)
    assert len(engine.reasons) == 1
    assert check.metrics["entropy_gap"] == 0


def test_wrong_entropies_of_an_engine_without_another_estimate_stop_the_run():
    module, engine, check = make()
    engine.generate = shifted(engine.generate)
    with pytest.raises(EngineError, match=r"entropies must be within 0\.0001 nats"):
        run(module, engine, check)


def shifted(generate):
    async def other(prompt_ids, params, on_probe=None):
        generation = await generate(prompt_ids, params, on_probe)
        generation.entropies[:] = [entropy + 0.5 for entropy in generation.entropies]
        return generation

    return other


def test_a_long_probe_prompt_is_cut_to_the_context():
    module, engine, check = make()
    publish(module.network, engine, 0)
    check(engine, module.score, [5, 6] * 100, 1.0, 0)


def test_bounds_and_numbers_must_be_positive():
    for name, zero in (("max_logprob_gap", 0.0), ("max_entropy_gap", 0.0), ("num_tokens", 0), ("max_prompt_tokens", 0)):
        with pytest.raises(ValueError, match=f"`{name}` must be positive, but got 0"):
            PublicationCheck(**{name: zero})
