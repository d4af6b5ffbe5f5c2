"""`aepo-eval ... engine=vllm`: the benchmarks by vLLM, trajectory by trajectory as the embedded engine has them."""

import pytest

from aepo_lightning.app.evaluation.benchmarks import evaluate_benchmarks
from aepo_lightning.policy.hf_folder import FolderWriter
from tests.support.benchmarks import write_config
from tests.support.extras import needs
from tests.support.vllm_parts import vllm_policy

needs("vllm", "vllm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore:::vllm", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
SMALL = ("engine.dtype=float32", "engine.kv_cache_memory_bytes=16777216")


def test_benchmarks_by_vllm_are_those_by_the_embedded_engine(tmp_path):
    policy = vllm_policy()
    FolderWriter(target=tmp_path / "model", source=policy).write_model(policy.build_model().named_parameters())
    config_dir = str(write_config(tmp_path / "conf"))

    def answers(engine, *words):
        own = ("benchmarks=[riddles]", "tools=search", "num_threads=1", "engine.max_num_seqs=8", f"engine={engine}")
        target = f"output_dir={tmp_path / engine}"
        found = evaluate_benchmarks(str(tmp_path / "model"), [*own, target, *words], config_dir=config_dir)
        return [(each.pair, each.response_text, each.num_generated_tokens) for each in found["riddles"]]

    found = answers("vllm", *SMALL)
    assert len(found) == 6
    assert found == answers("transformers")
    assert (tmp_path / "vllm" / "report.json").is_file()
