"""What `docs/own_parts.md` shows works as written: the parts satisfy their Protocols, and a group grows with them."""

import re
import sys

import pytest

from aepo_lightning import (
    AEPO,
    PaperReward,
    RolloutParts,
    RolloutSampler,
    SamplingSettings,
    ScratchPolicy,
    TagFormat,
    ToolRuntime,
    TransformersEngine,
    build_byte_tokenizer,
)
from aepo_lightning.app.build import build
from aepo_lightning.app.config_dir import search_path
from aepo_lightning.contracts.branching import BranchContext, BranchPolicy, BudgetAllocator
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.question import Task
from tests.support.composed import composed
from tests.support.paths import ROOT

GUIDE = (ROOT / "docs/own_parts.md").read_text()
TINY = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
TINY |= {"num_attention_heads": 1, "num_key_value_heads": 1, "tie_word_embeddings": True}


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The module of the guide, and the folder of its configuration."""
    (tmp_path / "my_parts.py").write_text(
        "\n\n".join(re.findall(r"```python\n(# my_parts.py\n.*?)```", GUIDE, re.DOTALL))
    )
    for name, content in re.findall(r"```yaml\n# (\S+)\n(.*?)```", GUIDE, re.DOTALL):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_parts

    yield my_parts
    del sys.modules["my_parts"]


def test_parts_satisfy_their_protocols(parts):
    assert isinstance(parts.Risen(), BranchPolicy)
    assert isinstance(parts.HalfUnlessSure(), BudgetAllocator)
    assert isinstance(parts.Sums(), Task)
    question = parts.Sums().question("train", 5)
    assert question.messages[0].content == "What is 20 + 19?"  # 7919 * 5 = 408 * 97 + 19, and 408 mod 97 is 20
    assert question.answers == ("39",)


@pytest.mark.parametrize(("entropy", "in_a_row", "branches"), [(0.5, 0, 1), (0.5, 1, 0), (0.3, 0, 0)])
def test_the_branch_rule_is_what_it_says(parts, entropy, in_a_row, branches):
    context = BranchContext(entropy=entropy, initial_entropy=0.2, consecutive_branches=in_a_row, uniform=0.0)
    assert parts.Risen().num_branches(context) == branches


def test_the_file_is_the_value(parts, tmp_path):
    cfg = composed(*search_path(str(tmp_path / "my_conf")), "algorithm=risen")
    assert build(cfg.algorithm).branch_policy == parts.Risen(factor=1.5)


def test_a_group_grows_with_them(parts):
    policy = ScratchPolicy(tokenizer=build_byte_tokenizer(), architecture=TINY)
    tools = ToolRuntime(tools=())
    algorithm = AEPO(budget=3, branch_policy=parts.Risen(), allocator=parts.HalfUnlessSure())
    engine = parts.Timed(TransformersEngine(policy, max_model_len=64))
    assert isinstance(engine, Engine)
    rollout = RolloutParts(
        engine=engine,
        tools=tools,
        reward=PaperReward(),
        chat_format=TagFormat.for_tools(policy.tokenizer, tools.specs),
        allocator=algorithm.allocator,
        branch_policy=algorithm.branch_policy,
        settings=algorithm.rollout_settings(SamplingSettings(max_response_tokens=4)),
    )
    (tree,) = RolloutSampler(rollout).rollout([parts.Sums().question("train", 0)], seed=0)
    assert len(tree.leaves) == 3
    assert engine.seconds > 0
