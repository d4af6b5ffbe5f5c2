"""Configurations of runs on disk, also those that an earlier version of this library wrote.

A saved configuration carries the number of the version of its form. Reading one of an earlier form translates it:
first the `_target_`s that have moved, by a table, then one step after another what else has changed. Only files of
runs pass through here; a configuration that is composed now must be of the present form.

To move a class, add a line to `_MOVED`. To change keys, append a function to `_STEPS`, which changes a configuration
of the form before it in place; the present form is the number of steps.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from aepo_lightning.atomic_files import replacing
from aepo_lightning.errors import ConfigError

FORM_KEY = "config_form"
"""Where a saved configuration has the number of its form; without it, it has form 0."""

_MOVED = {
    "aepo_lightning.adapters": "aepo_lightning.policy.lora",
    "aepo_lightning.engines.VLLMEngine": "aepo_lightning.engines.vllm.engine.VLLMEngine",
    "aepo_lightning.engines.vllm_engine": "aepo_lightning.engines.vllm.engine",
    "aepo_lightning.engines.vllm_server.VLLMServerEngine": "aepo_lightning.engines.vllm_server.engine.VLLMServerEngine",
    "aepo_lightning.entropy.TurnEntropy": "aepo_lightning.rollout.turn_entropy.TurnEntropy",
    "aepo_lightning.fsdp1": "aepo_lightning.policy.sharding.fsdp1",
    "aepo_lightning.policy.PretrainedPolicy": "aepo_lightning.policy.source.PretrainedPolicy",
    "aepo_lightning.policy.ScratchPolicy": "aepo_lightning.policy.source.ScratchPolicy",
    "aepo_lightning.publication": "aepo_lightning.policy.publishing.check",
    "aepo_lightning.rollout.HermesFormat": "aepo_lightning.chat_formats.hermes.HermesFormat",
    "aepo_lightning.rollout.TagProtocol": "aepo_lightning.chat_formats.tags.TagFormat",
    "aepo_lightning.tokenizers": "aepo_lightning.policy.tokenizers",
    "aepo_lightning.tool_spec": "aepo_lightning.contracts.tool",
    "aepo_lightning.tools.CorpusSearch": "aepo_lightning.tools.DocumentSearch",
    "aepo_lightning.tools.browse.Browse": "aepo_lightning.tools.browse.tool.Browse",
    "aepo_lightning.tools.browse.PageSummary": "aepo_lightning.tools.browse.tool.PageSummary",
    "aepo_lightning.tools.page_fetcher": "aepo_lightning.tools.browse.page_fetcher",
}
"""Where modules, classes and functions that a configuration may name have moved to, by their earlier paths."""


def save_config(cfg: DictConfig, path: Path) -> None:
    """Write the configuration of a run, with the number of its form."""
    with replacing(path) as partial:
        partial.write_text(f"{OmegaConf.to_yaml(cfg)}{FORM_KEY}: {len(_STEPS)}\n", encoding="utf-8")


def read_config(path: Path) -> DictConfig:
    """Read the configuration of a run, in the present form.

    Raises:
        ConfigError: If it is of a later form than is known here, or cannot be read.
    """
    plain = _load(path)
    form = plain.pop(FORM_KEY, 0)
    if form > len(_STEPS):
        raise ConfigError(
            f"{path} must have a form up to {len(_STEPS)}, but has {form}: a later version of this library wrote it. "
            "Use that version."
        )
    try:
        _translate(plain, form)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} must be a configuration that a run wrote, but lacks what one of form {form} has: {error!r}."
        ) from error
    return OmegaConf.create(plain)


def _load(path: Path) -> dict[Any, Any]:
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} must be a configuration that a run wrote, but cannot be read: {reason}.") from error
    if not isinstance(plain, dict) or not isinstance(plain.get(FORM_KEY, 0), int):
        raise ConfigError(f"{path} must be a configuration that a run wrote, but is another file. Name a run's folder.")
    return plain


def _translate(plain: dict[Any, Any], form: int) -> None:
    """Bring a configuration to the present form, in place."""
    for node in mappings(plain):
        if isinstance(target := node.get("_target_"), str):
            node["_target_"] = _present_path(target)
    for step in _STEPS[form:]:
        step(plain)


def mappings(node: Any) -> Iterator[dict[Any, Any]]:
    """Yield every mapping in a configuration."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from mappings(child)


def _present_path(target: str) -> str:
    """Return the path of what a `_target_` names, which may be an attribute of what has moved."""
    for old, new in _MOVED.items():
        if target == old or target.startswith(f"{old}."):
            return new + target.removeprefix(old)
    return target


def _name_share_of_fixed_budget(plain: dict[Any, Any]) -> None:
    """Say which share of the budget starts at the root, instead of how many trajectories."""
    allocator = plain["algorithm"]["allocator"]
    if allocator["_target_"] == "aepo_lightning.budgets.FixedBudget":
        share = allocator["num_root_chains"] / plain["rollout"]["settings"]["budget"]
        plain["algorithm"]["allocator"] = {"_target_": "aepo_lightning.budgets.RootShare", "share": share}


def _give_parts_their_targets(plain: dict[Any, Any]) -> None:
    """Name the class of algorithm, data, module and experience, and write each of their values once."""
    settings = plain["rollout"].pop("settings")
    names = ("temperature", "top_p", "top_k", "max_response_tokens", "max_tool_calls", "on_call_limit")
    sampling = {name: settings[name] for name in names if name in settings}
    plain["rollout"]["sampling"] = {"_target_": "aepo_lightning.rollout.SamplingSettings", **sampling}
    algorithm, training = plain["algorithm"], "aepo_lightning.training"
    algorithm |= {"_target_": f"{training}.algorithm.Algorithm", "budget": settings["budget"]}
    algorithm |= algorithm.pop("switches")
    plain["module"] |= {"_target_": f"{training}.module.AEPOModule"}
    plain["module"].pop("temperature")
    plain["experience"] |= {"_target_": f"{training}.experience.ExperienceSettings"}
    plain["experience"].pop("drop_zero_variance_groups")
    plain["data"] |= {
        "_target_": f"{training}.datamodule.RolloutDataModule",
        "max_concurrent_questions": "${rollout.max_concurrent_questions}",
        "num_val_samples": "${evaluation.num_samples}",
        "pass_at": "${evaluation.pass_at}",
        "seed": "${seed}",
    }


_AGENT_SYSTEM_PROMPT = (
    "Answer the question step by step. You may use two tools: a search engine and a Python interpreter. "
    "Reason inside <think> and </think> before every action. To search, write <search> your query </search>. "
    "To compute, write <python> your code </python> and print what you want to see. "
    "After each call the output of the tool follows between <result> and </result>; read it before you go on, and "
    "call tools as often as you need. "
    "When you know the answer, write <answer> a short explanation, then \\boxed{the exact answer} </answer>."
)
"""What question files without a `system_prompt` of their own sent."""


def _keep_prompts(plain: dict[Any, Any]) -> None:
    """Write out the system prompts that were sent, and send no others."""
    chat_format = plain["rollout"].get("chat_format", {})
    if chat_format.get("_target_", "").startswith("aepo_lightning."):
        chat_format.setdefault("system_prompt", "none")
    task = plain.get("data", {}).get("task", {})
    if task.get("_target_") == "aepo_lightning.tasks.JsonlQuestions":
        task.setdefault("system_prompt", _AGENT_SYSTEM_PROMPT)


_TOOL_NAMES = {"PythonTool": "python", "Browse": "browse", "mcp_tools": "mcp"}
"""Names of tools that a list does not name; all others search."""


def _name_tools(plain: dict[Any, Any]) -> None:
    """Put each tool under its name, and what they have in common under `runtime`."""
    runtime = plain.get("tools")
    if not (isinstance(runtime, dict) and isinstance(runtime.get("tools"), list)):
        return
    listed = runtime.pop("tools")
    plain["tools"] = {"runtime": runtime}
    for tool in listed:
        kind = tool["_target_"].rpartition(".")[2]
        name = tool.get("name") or _TOOL_NAMES.get(kind, "search")
        plain["tools"][name if name not in plain["tools"] else f"{name}_{len(plain['tools'])}"] = tool


def _keep_scoring(plain: dict[Any, Any]) -> None:
    """Compare answers as they were compared, ask all that were asked, and call rewards without a deadline."""
    settings = {"_target_": "aepo_lightning.rollout.ScoringSettings", "deadline_s": float("inf"), "on_error": "stop"}
    plain["rollout"].setdefault("scoring", settings)
    reward = plain.get("reward", {})
    if reward.get("_target_") == "aepo_lightning.rewards.PaperReward":
        reward.setdefault("match", "words")
    task = plain.get("data", {}).get("task", {})
    if task.get("_target_", "").rpartition(".")[2] in ("JsonlQuestions", "ParquetQuestions", "OfficialParquet"):
        task.setdefault("on_bad_gold", "keep")


def _say_what_errors_of_rewards_mean(plain: dict[Any, Any]) -> None:
    """Name what the failure of a reward means by the present words."""
    scoring = plain["rollout"]["scoring"]
    words = {"stop": "fail", "mask": "abstain"}
    if "on_error" in scoring:
        scoring["on_error"] = words[scoring["on_error"]]


_OF_LIMITS = ("minimum_nats", "patience", "until_reward")


def _give_the_guard_its_limits(plain: dict[Any, Any]) -> None:
    """Put the limits of the entropy guard into their own part, and what it did into another."""
    for guard in (plain.get("callbacks") or {}).values():
        if not isinstance(guard, dict) or guard.get("_target_") != "aepo_lightning.callbacks.EntropyGuard":
            continue
        limits = {name: guard.pop(name) for name in _OF_LIMITS if name in guard}
        acts = ["stop"] if guard.pop("action", "warn") == "stop" else []
        guard["limits"] = {"_target_": "aepo_lightning.callbacks.Limits", **limits}
        guard["settings"] = {"_target_": "aepo_lightning.callbacks.GuardSettings", "acts": acts}


_STEPS: tuple[Callable[[dict[Any, Any]], None], ...] = (
    _name_share_of_fixed_budget,
    _give_parts_their_targets,
    _name_tools,
    _keep_prompts,
    _keep_scoring,
    _say_what_errors_of_rewards_mean,
    _give_the_guard_its_limits,
)
"""What brings a configuration from each form to the next."""
