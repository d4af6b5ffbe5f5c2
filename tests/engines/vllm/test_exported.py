"""What a run exports is a policy that vLLM serves."""

import pytest

from aepo_lightning.app.export import export
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.policy.source import PretrainedPolicy
from tests.support.extras import needs
from tests.support.finished_runs import finished
from tests.support.vllm_parts import generate, make_engine, params, prompt

needs("vllm", "vllm")
pytestmark = pytest.mark.filterwarnings("ignore:::vllm", "ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.slow
def test_an_exported_folder_is_a_policy_for_vllm(tmp_path):
    folder, weights = finished(tmp_path / "run", [])
    export(folder, tmp_path / "policy")
    policy = PretrainedPolicy(name_or_path=str(tmp_path / "policy"))
    engine = make_engine(policy, max_model_len=64)
    requests = [([token % len(policy.tokenizer) for token in prompt(9, n)], params(8, seed=n)) for n in range(4)]
    found = generate(engine, requests)
    engine.close()
    embedded = TransformersEngine(policy, max_num_seqs=4, max_model_len=64)
    embedded.load_weights(weights.items(), 0)
    assert [each.token_ids for each in found] == [each.token_ids for each in generate(embedded, requests)]
