import pytest

from aepo_lightning.app.plan import make_plan
from aepo_lightning.app.plan.from_config import plan_input
from aepo_lightning.errors import ConfigError, DataError
from tests.support.builders import tiny_policy
from tests.support.composed import composed


def settings(*overrides):
    return plan_input(composed(*overrides))


def experiment(*overrides):
    return settings("+experiment=aepo_qwen3_14b", *overrides)


def test_reads_the_published_recipe():
    found = experiment()
    assert (found.num_gpus, found.gpus_per_node, found.is_gpu, found.sharding) == (8, 8, True, "fsdp2")
    assert (found.micro_batch_tokens, found.max_trajectory_tokens, found.group_size) == (16384, 8192, 12)
    assert (found.is_checkpointed, found.is_mixed_precision, found.adapter_rank) == (True, True, 0)
    assert (found.weight_bytes, found.is_pretrained, found.engine_sleeps) == (4, True, True)


@pytest.mark.parametrize("num_nodes", [1, 2, 8])
def test_the_published_recipe_fits_on_nodes_of_eight(num_nodes):
    plan = make_plan(experiment(f"trainer.num_nodes={num_nodes}"))
    assert plan.settings.num_gpus == 8 * num_nodes
    assert plan.fits


def test_the_published_recipe_does_not_fit_on_one_gpu():
    assert not make_plan(experiment("trainer.devices=1")).fits


@pytest.mark.parametrize(
    ("override", "name", "expected"),
    [
        ("strategy=ddp", "sharding", "replicated"),
        ("strategy=auto", "sharding", "replicated"),
        ("trainer.devices=[0,1,2]", "num_gpus", 3),
        ("adapter=lora", "adapter_rank", 32),
        ("model.dtype=bfloat16", "weight_bytes", 2),
        ("module.gradient_checkpointing=false", "is_checkpointed", False),
        ("module.cpu_offload=true", "is_cpu_offloaded", True),
        ("module.reshard_after_forward=false", "is_resharded_after_forward", False),
        ("module.mixed_precision=false", "is_mixed_precision", False),
        ("strategy=fsdp1", "sharding", "fsdp1"),
        ("module.defer_gradient_sync=true", "is_gradient_sync_deferred", True),
        ("experience.packing=tree", "packing", "tree"),
        ("algorithm.kl_penalty.coefficient=0.1", "has_reference", True),
        ("engine.tensor_parallel_size=2", "engine_tensor_parallel", 2),
        ("engine.sleep_level=1", "engine_keeps_weights", True),
        ("engine=vllm_server", "engine_memory_fraction", 0.0),
    ],
)
def test_every_option_reaches_the_plan(override, name, expected):
    assert getattr(experiment(override), name) == expected


def test_one_device_is_not_sharded_on_a_cpu():
    found = settings()
    assert (found.num_gpus, found.is_gpu, found.sharding, found.is_pretrained) == (1, False, "none", False)
    assert make_plan(found).fits


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.devices=0", "`trainer.devices` must be a positive number for a plan, but got 0"),
        ("trainer.num_nodes=-1", "`trainer.num_nodes` must be a positive number for a plan, but got -1"),
        ("trainer.devices=auto", "`trainer.devices` must be a positive number for a plan, but got 'auto'"),
        ("experience.max_tokens_per_micro_batch=0", "`micro_batch_tokens` must be at least 1, but got 0"),
        ("rollout.sampling.max_response_tokens=9000", "`max_prompt_tokens` must be at least 1, but got -808"),
        ("engine._target_=my.Engine", r"needs one of the engines TransformersEngine, .* is my\.Engine"),
    ],
)
def test_refuses_numbers_without_meaning(override, message):
    with pytest.raises(ConfigError, match=message):
        experiment(override)


def test_a_drawn_model_needs_its_architecture():
    with pytest.raises(ConfigError, match=r"`plan=true` needs `model\.architecture`"):
        settings("model.architecture=null")


def test_the_architecture_of_a_folder_is_read_from_its_config(tmp_path):
    policy = tiny_policy()
    policy.config.save_pretrained(tmp_path)
    found = settings("model=hf", f"model.name_or_path={tmp_path}")
    number = sum(weight.numel() for weight in policy.build_model().parameters())
    assert make_plan(found).size.num_parameters == number
    assert found.is_pretrained


def test_a_folder_without_a_config_is_named(tmp_path):
    with pytest.raises(DataError, match=r"must hold a configuration, but has no file config\.json"):
        settings("model=hf", f"model.name_or_path={tmp_path}")
