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


ON_GPU = ("trainer.accelerator=gpu", "engine.max_num_seqs=64")


@pytest.mark.parametrize(
    ("overrides", "number_bytes"),
    [
        ((), 4),
        (ON_GPU, 4),
        ((*ON_GPU, "engine.dtype=bfloat16"), 2),
        ((*ON_GPU, "model=qwen3_8b"), 2),
        (("model=qwen3_8b",), 4),
        ((*ON_GPU, "model=qwen3_8b", "engine.device=cpu"), 4),
        ((*ON_GPU, "model=qwen3_8b", "engine.dtype=float32"), 4),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_the_embedded_engine_holds_weights_and_cache_in_its_precision(overrides, number_bytes):
    found = settings(*overrides, "engine.max_cache_gib=1000")
    size, num_slots = make_plan(found).size, 2 * (64 if "engine.max_num_seqs=64" in overrides else 512)
    numbers = size.num_parameters + size.kv_bytes_per_token(1) // 2 * num_slots * 512
    # 20 bytes for each row and word of a captured step.
    workspace = (
        20 * 64 * found.architecture["vocab_size"] if found.is_gpu and "engine.device=cpu" not in overrides else 0
    )
    assert found.engine_workspace_gib == workspace / 2**30
    expected = min(1.0, (number_bytes * numbers + workspace) / 2**30 / found.gpu_memory_gib)
    assert found.engine_memory_fraction == pytest.approx(expected)


def test_the_cache_of_the_embedded_engine_has_a_bound():
    found = settings(*ON_GPU, "model=qwen3_8b", "engine.max_cache_gib=3")
    weights = 2 * make_plan(found).size.num_parameters / 2**30
    held = weights + 3 + found.engine_workspace_gib
    assert found.engine_memory_fraction == pytest.approx(held / found.gpu_memory_gib)
