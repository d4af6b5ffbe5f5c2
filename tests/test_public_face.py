"""What a user writes in twenty lines: the public names, the presets as values, and a run on a bare trainer."""

import ast
import json
import re
import subprocess
import sys
from importlib import import_module

import lightning as L
import pytest
from typing_extensions import override

import aepo_lightning
from aepo_lightning import (
    AEPO,
    AEPOModule,
    JsonlQuestions,
    PretrainedPolicy,
    RolloutDataModule,
    SamplingSettings,
    ScratchPolicy,
    TransformersEngine,
    build_byte_tokenizer,
    tool,
)
from aepo_lightning.app.build import build
from aepo_lightning.callbacks import EntropyMonitor
from aepo_lightning.training import presets
from tests.support.builders import canonical
from tests.support.composed import composed
from tests.support.paths import CONF, ROOT

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
ARCHITECTURE = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "initializer_range": 0.4,
    "tie_word_embeddings": True,
}


class Recorder(L.Callback):
    """What every epoch trained on."""

    def __init__(self):
        super().__init__()
        self.questions, self.trees, self.temperatures = [], [], set()

    @override
    def on_train_epoch_start(self, trainer, pl_module):
        trees = trainer.datamodule.trees
        self.questions.append([tree.question.messages for tree in trees])
        self.trees.append([canonical(tree)[0] for tree in trees])
        self.temperatures |= {tree.temperature for tree in trees}

    @override
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.temperatures |= {each.temperature for each in batch.micro_batches}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A Hugging Face folder and a file of questions in the working directory."""
    monkeypatch.chdir(tmp_path)
    policy = ScratchPolicy(tokenizer=build_byte_tokenizer(), architecture=ARCHITECTURE)
    policy.build_model().save_pretrained("policy")
    policy.tokenizer.save_pretrained("policy")
    rows = [{"question": f"What is {number} times 7?", "answer": str(7 * number)} for number in range(64)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@tool
def multiply(a: float, b: float) -> str:
    """Multiply two numbers."""
    return str(a * b)


def correct(sample) -> float:
    return float(sample.question.answers[0] in sample.response_text)


def test_twenty_lines_train_on_new_questions_and_new_trees_in_every_epoch(files):
    recorder = Recorder()

    policy = PretrainedPolicy("policy")
    algorithm = AEPO(budget=2)
    data = RolloutDataModule(
        JsonlQuestions("train.jsonl"),
        TransformersEngine(policy, max_model_len=96),
        algorithm,
        tools=[multiply],
        reward=correct,
    )
    module = AEPOModule(policy, algorithm, lr=1e-6)
    trainer = L.Trainer(max_epochs=2, callbacks=[EntropyMonitor(), recorder], **QUIET)
    trainer.fit(module, data)

    first, second = recorder.questions
    assert len({*first, *second}) == 64, "an epoch of the file is two iterations"
    assert recorder.trees[0] != recorder.trees[1]
    assert recorder.temperatures == {1.0}
    assert data.iteration == 2
    assert trainer.global_step == 8
    assert data.metrics["experience/max_importance_weight"] == pytest.approx(1, abs=1e-4)
    assert len(list(files.rglob("entropy.png"))) == 1


def test_the_python_example_of_the_readme_runs(files):
    (example,) = re.findall(r"```python\n(import lightning.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    # A model, an engine and a trainer that this machine has; everything else stays as it is written.
    stand_ins = {
        '"Qwen/Qwen3-4B"': '"policy"',
        "VLLMEngine(policy, max_model_len=4096)": "TransformersEngine(policy, max_model_len=96)",
        "VLLMEngine": "TransformersEngine",
        "budget=8": "budget=2",
        "max_epochs=80, ": "max_epochs=1, **QUIET, ",
    }
    for written, here in stand_ins.items():
        assert written in example
        example = example.replace(written, here)
    names = {"QUIET": QUIET}
    exec(compile(example, "README.md", "exec"), names)
    assert names["data"].iteration == 1
    assert len(example.splitlines()) < 30


def test_the_temperature_of_the_data_is_the_modules(files):
    recorder = Recorder()
    policy, algorithm = PretrainedPolicy("policy"), AEPO(budget=2)
    data = RolloutDataModule(
        JsonlQuestions("train.jsonl"),
        TransformersEngine(policy, max_model_len=96),
        algorithm,
        reward=correct,
        sampling=SamplingSettings(temperature=0.6, max_response_tokens=16),
        questions_per_iteration=8,
    )
    trainer = L.Trainer(max_epochs=1, callbacks=[recorder], enable_checkpointing=False, **QUIET)
    trainer.fit(AEPOModule(policy, algorithm), data)
    assert recorder.temperatures == {0.6}
    # The trainer's log-probs of the sampled tokens are the engine's, which are those at its temperature.
    assert data.metrics["experience/max_importance_weight"] == pytest.approx(1, abs=1e-4)


def test_importing_the_package_imports_no_torch_and_rewards_no_judge():
    program = (
        "import sys, aepo_lightning; print('torch' in sys.modules); "
        "import aepo_lightning.rewards as rewards; print('aepo_lightning.rewards.judge' in sys.modules); "
        "print(rewards.LLMJudge.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False", "aepo_lightning.rewards.judge.judge"]


@pytest.mark.parametrize("name", aepo_lightning.__all__)
def test_every_public_name_is_imported_from_where_it_says(name):
    module = import_module(f"aepo_lightning.{aepo_lightning._MODULE_OF[name]}")
    assert getattr(aepo_lightning, name) is getattr(module, name)


def test_type_checkers_see_the_same_names_from_the_same_places():
    tree = ast.parse((ROOT / "aepo_lightning/__init__.py").read_text())
    (block,) = (each for each in tree.body if isinstance(each, ast.If) and ast.unparse(each.test) == "TYPE_CHECKING")
    declared = {alias.name: each.module for each in block.body for alias in each.names}
    assert declared == {name: f"aepo_lightning.{module}" for name, module in aepo_lightning._MODULE_OF.items()}
    assert sorted(aepo_lightning.__all__) == sorted(declared)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        aepo_lightning.nothing  # noqa: B018


def readme_imports():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    found = [each for block in blocks for each in ast.parse(block).body if isinstance(each, ast.ImportFrom)]
    return [(each.module, alias.name) for each in found for alias in each.names if "aepo" in each.module]


@pytest.mark.parametrize(("module", "name"), readme_imports())
def test_what_the_readme_imports_is_there(module, name):
    assert hasattr(import_module(module), name)
    assert module != "aepo_lightning" or name in aepo_lightning.__all__


PRESETS = {
    "aepo": presets.AEPO,
    "at2po": presets.AT2PO,
    "dr_grpo": presets.DrGRPO,
    "gigpo": presets.GiGPO,
    "reinforce_pp": presets.ReinforcePP,
    "reinforce_pp_baseline": presets.ReinforcePPBaseline,
    "rloo": presets.RLOO,
    "aepo_official": presets.AEPOOfficial,
    "aepo_released": presets.AEPOReleased,
    "aepo_unbiased": presets.AEPOUnbiased,
    "arpo": presets.ARPO,
    "ce_gppo": presets.CEGPPO,
    "cispo": presets.CISPO,
    "dapo": presets.DAPO,
    "empg": presets.EMPG,
    "gppo": presets.GPPO,
    "grpo": presets.GRPO,
    "gspo": presets.GSPO,
    "random_branching": presets.AEPORandomBranching,
}


def test_every_algorithm_of_the_configuration_is_a_preset():
    assert sorted(PRESETS) == sorted(
        path.stem for path in (CONF / "algorithm").glob("*.yaml") if not path.stem.startswith("_")
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_the_configuration_builds(name):
    assert build(composed(f"algorithm={name}").algorithm) == PRESETS[name]()
