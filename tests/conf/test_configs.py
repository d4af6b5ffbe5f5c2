import json
import re
from itertools import dropwhile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from aepo_lightning.advantages import FirstBranch
from aepo_lightning.app.build import build, build_run, build_strategy, build_tools
from aepo_lightning.app.overrides import explain_missing
from aepo_lightning.app.plan import make_plan
from aepo_lightning.app.plan.from_config import plan_input
from aepo_lightning.contracts.question import Message, Task
from aepo_lightning.contracts.tool import ToolRunner
from aepo_lightning.errors import ConfigError
from aepo_lightning.objectives import Cispo, ClippedSurrogate
from aepo_lightning.training.presets import ARPO
from tests.support.composed import composed
from tests.support.paths import CONF

REQUIRED = {
    ("model", "hf"): ["model.name_or_path=a-folder"],
    ("model", "tiny_saved"): ["model.name_or_path=a-folder"],
    ("data", "jsonl"): ["data.task.path=a.jsonl"],
    ("data", "parquet"): ["data.task.path=a.parquet"],
    ("reward", "judge"): ["reward.terms.answer.checker.model=NAME"],
    ("reward", "own"): ["reward._target_=my_rewards.contains"],
}
"""What must be given beside an option."""
BIG = ["aepo_qwen3_14b", "aepo_qwen3_8b", "aepo_llama3_8b", "aepo_qwen2_5_7b"]


def options(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_"))


def all_options():
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir() and not path.name.startswith("_"))
    others = ("experiment", "benchmark", "judge")  # what a run is not made of by itself has tests of its own
    return [(group, option) for group in groups if group not in others for option in options(group)]


@pytest.mark.parametrize(("group", "option"), all_options(), ids=lambda value: value)
def test_every_option_composes_and_resolves(group, option):
    cfg = composed(f"{group}={option}", *REQUIRED.get((group, option), []))
    assert explain_missing(OmegaConf.missing_keys(cfg)) is None
    found = OmegaConf.to_container(cfg, resolve=True)
    assert found[group] if group in found else group in found["module"]  # an adapter is a part of the module


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes_and_plans(name):
    cfg = composed(f"+experiment={name}")
    assert cfg.name == name
    assert make_plan(plan_input(cfg)).size.num_parameters > 0


@pytest.mark.parametrize("name", options("algorithm"))
def test_every_algorithm_builds_a_run(name, tmp_path):
    cfg = composed(f"algorithm={name}", "callbacks=none")
    policy = build(cfg.model)
    sampler = build_run(cfg, policy, tmp_path).datamodule.prepare_sampler(policy.tokenizer)
    assert sampler.parts.settings.budget == cfg.algorithm.budget
    assert sampler.parts.allocator == build(cfg.algorithm.allocator)


@pytest.mark.parametrize("name", options("callbacks"))
def test_every_set_of_callbacks_builds_a_trainer(name, tmp_path):
    cfg = composed(f"callbacks={name}")
    run = build_run(cfg, build(cfg.model), tmp_path)
    assert str(run.trainer.checkpoint_callback.dirpath) == str(tmp_path / "checkpoints")


@pytest.mark.parametrize("name", ["trail", "cave", "arithmetic", "deep_search"])
def test_procedural_tasks_instantiate(name):
    task = build(composed(f"data={name}").data.task)
    assert isinstance(task, Task)
    assert task.question("train", 0).messages


@pytest.mark.parametrize(("group", "option"), REQUIRED, ids=lambda value: value)
def test_what_must_be_given_is_asked_for(group, option):
    problem = explain_missing(OmegaConf.missing_keys(composed(f"{group}={option}")))
    key, _, _ = REQUIRED[group, option][0].partition("=")
    assert problem == f"`{key}` must be given, but got nothing. Write {key}=VALUE."


@pytest.mark.parametrize("name", ["jsonl", "parquet"])
def test_files_of_ones_own_become_a_task(name, tmp_path):
    rows = [{"asked": "2?", "truth": {"gold": [2]}}]
    path = tmp_path / f"my.{name}"
    if name == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    fields = ["data.task.question_field=asked", "data.task.answer_field=truth.gold", "data.task.ability=math"]
    task = build(composed(f"data={name}", f"data.task.path={path}", *fields).data.task)
    assert isinstance(task, Task)
    assert task.question("train", 0).answers == ("2",)
    assert task.question("train", 0).metadata["ability"] == "math"
    assert task.question("train", 0).messages == (Message(role="user", content="2?"),)


@pytest.mark.parametrize("name", ["search", "python"])
def test_tools_instantiate(name):
    tools = build_tools(composed(f"tools={name}").tools)
    assert isinstance(tools, ToolRunner)
    assert name in tools.tool_names


@pytest.mark.parametrize("name", ["fsdp", "ddp", "auto"])
def test_strategies_instantiate(name):
    assert build_strategy(composed(f"strategy={name}")) is not None


def test_fsdp_shards_over_every_rank_of_every_node():
    strategy = build_strategy(composed("strategy=fsdp", "trainer.devices=8", "trainer.num_nodes=2"))
    assert strategy._data_parallel_size == 16
    with pytest.raises(ConfigError, match=r"`trainer.devices` must be a number of devices for FSDP2, but got 'auto'"):
        build_strategy(composed("strategy=fsdp", "trainer.devices=auto"))


@pytest.mark.parametrize("name", ["tiny_qwen3", "tiny_qwen3_bytes"])
def test_small_models_build_with_the_size_that_is_promised(name):
    model = build(composed(f"model={name}").model).build_model()
    assert 5e5 < sum(weight.numel() for weight in model.parameters()) < 3e6


@pytest.mark.parametrize("name", BIG)
def test_big_experiments_fit_eight_gpus_with_the_published_batch(name):
    plan = make_plan(plan_input(composed(f"+experiment={name}")))
    assert plan.fits
    assert plan.batch.steps_per_iteration == 8  # both published settings: 128 / 16 and 64 / 8


def test_servers_take_nothing_of_the_trainers_gpus():
    own = make_plan(plan_input(composed("+experiment=aepo_qwen3_14b")))
    served = make_plan(
        plan_input(composed("+experiment=aepo_qwen3_14b", "engine=vllm_server", "engine.max_model_len=8192"))
    )
    assert served.engine is None
    assert own.engine is not None
    assert served.batch == own.batch


def test_algorithms_set_the_coefficients_of_the_one_surrogate():
    # Spec of the family: (low, high) = (0, 0) PPO clip, (0, 1) EBPO, (1, 1) GPPO, (0.75, 1) CE-GPPO.
    found = {
        name: (composed(f"algorithm={name}").algorithm.objective.preserve_low,
               composed(f"algorithm={name}").algorithm.objective.preserve_high)
        for name in ("grpo", "dapo", "aepo", "aepo_official", "gppo", "ce_gppo")
    }  # fmt: skip
    assert found == {
        "grpo": (0.0, 0.0),
        "dapo": (0.0, 0.0),
        "aepo": (0.0, 1.0),
        "aepo_official": (0.0, 1.0),
        "gppo": (1.0, 1.0),
        "ce_gppo": (0.75, 1.0),
    }


@pytest.mark.parametrize("name", options("algorithm"))
def test_an_algorithm_is_a_page_that_names_its_paper_and_what_its_settings_are_from(name):
    lines = (CONF / "algorithm" / f"{name}.yaml").read_text().splitlines()
    comments = " ".join(line.partition("#")[2].strip() for line in lines)
    assert len(lines) <= 50
    # The reference takes a comment above a key for its meaning, so what is said of the whole stands at the top.
    assert not any(line.startswith("#") for line in dropwhile(lambda line: line.startswith("#"), lines))
    assert re.search(r"arXiv \d{4}\.\d{5}", comments)
    assert re.search(r"\beqs?\. \d|\bsection \d|[Dd]epart|deviation|[Tt]he released run|of no paper", comments)


@pytest.mark.parametrize(
    ("name", "expected"), [("clipped_surrogate", ClippedSurrogate(preserve_high=1.0)), ("cispo", Cispo())]
)
def test_an_objective_is_chosen_for_any_algorithm(name, expected):
    own = ["algorithm.objective.preserve_high=1.0"] if name == "clipped_surrogate" else []
    algorithm = build(composed("algorithm=arpo", f"algorithm/objective={name}", *own).algorithm)
    assert algorithm == ARPO(objective=expected)


def test_every_yaml_file_is_reached_by_a_test():
    reached = {f"{group}/{option}.yaml" for group, option in all_options()}
    reached |= {f"experiment/{name}.yaml" for name in options("experiment")} | {"train.yaml"}
    bases = {path for path in CONF.rglob("_*.yaml") if any(f"- {path.stem}\n" in text for text in beside(path))}
    reached |= {str(path.relative_to(CONF)) for path in bases}
    reached |= {f"algorithm/objective/{name}.yaml" for name in options("algorithm/objective")}
    reached |= {f"benchmark/{name}.yaml" for name in options("benchmark")}  # in test_benchmarks.py
    reached |= {"judge_check.yaml", "judge/llm.yaml"}  # tests/app/evaluation/test_judge_check.py
    reached |= {"eval.yaml", "judge/own.yaml"}  # tests/app/evaluation/test_benchmarks.py
    assert reached == {str(path.relative_to(CONF)) for path in CONF.rglob("*.yaml")}


def beside(path):
    return [other.read_text() for other in path.parent.glob("*.yaml") if other != path]


@pytest.mark.parametrize("name", ["hf", "smollm2"])
def test_a_pretrained_model_brings_what_suits_it(name):
    cfg = composed(f"model={name}", *REQUIRED.get(("model", name), []))
    assert (cfg.num_threads, cfg.module.gradient_checkpointing, cfg.module.max_grad_norm) == (None, True, 1.0)
    assert cfg.module.optimizer.lr <= 1e-5
    assert cfg.coldstart.optimizer.lr <= 3e-4
    assert cfg.rollout.sampling.max_response_tokens >= 512
    assert cfg.engine.max_model_len >= 1024
    assert cfg.publication_check.max_logprob_gap == cfg.publication_check.max_entropy_gap == 0.2
    schedule = cfg.coldstart.scheduler
    assert schedule.num_warmup_steps + schedule.num_decay_steps < cfg.coldstart.num_steps


@pytest.mark.parametrize("name", options("model"))
def test_every_pretrained_model_brings_the_defaults_of_one(name):
    text = (CONF / "model" / f"{name}.yaml").read_text()
    is_large = "source.PretrainedPolicy" in text and name != "tiny_saved"
    assert ("- _pretrained" in text) == is_large


def test_a_small_policy_that_was_saved_brings_nothing_but_itself():
    made, saved = (
        composed("+experiment=stability", f"model={name}", *REQUIRED.get(("model", name), []))
        for name in ("tiny_qwen3", "tiny_saved")
    )
    made.model = saved.model = None
    assert made == saved


def test_what_a_model_brings_gives_way_to_the_command_line_and_to_having_no_cold_start():
    cfg = composed("model=smollm2", "coldstart=none", "engine=vllm_server", "module.optimizer.lr=0.5")
    assert (cfg.coldstart.num_steps, cfg.coldstart.optimizer, cfg.module.optimizer.lr) == (0, None, 0.5)
    assert cfg.engine.max_model_len == 1024


def test_a_policy_made_from_nothing_keeps_its_cold_start():
    found = composed().coldstart
    assert (found.num_steps, found.batch_size, found.optimizer.lr) == (650, 64, 3e-3)
    assert (found.scheduler.num_warmup_steps, found.scheduler.num_decay_steps) == (50, 150)


def test_a_part_is_chosen_on_the_command_line_as_the_documentation_says():
    cfg = composed("algorithm=arpo", "algorithm.credit={_target_: aepo_lightning.advantages.FirstBranch}")
    assert build(cfg.algorithm) == ARPO(credit=FirstBranch())
