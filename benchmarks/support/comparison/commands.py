"""The command line of a run, and what tells whether a run or a cold start that lies there is still that of the command.

Runs are those of `python train.py` with these words.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from aepo_lightning.app.made_of import cold_start_made_of
from benchmarks.support.comparison.settings import CONFIG_MODULE, Bed, Job, algorithms

_DIGITS = 12
_OF_THE_COLD_START = "grpo"
"""An algorithm for what no algorithm changes."""


def words_of(job: Job, bed: Bed) -> list[str]:
    """Return what follows `python train.py` for a run, but for its folder.

    Only what makes no number is left out: checkpoints, pictures, copies of weights for replays, the check of the
    published weights.
    """
    spent = f"num_generated_tokens: {bed.num_generated_tokens}, num_answered_calls: {bed.num_answered_calls}"
    curve = "_target_: aepo_lightning.callbacks.LearningCurve, every_metric: true, has_picture: false"
    return [
        *([f"+experiment={bed.experiment}"] if bed.experiment else []),
        *algorithms()[job.algorithm],
        f"seed={job.seed}",
        "callbacks=none",
        "callbacks.checkpoint=null",
        "+trainer.enable_checkpointing=false",
        "publication_check=null",
        "rollout.keep_weights=0",
        f"+callbacks.sample_budget={{_target_: aepo_lightning.callbacks.SampleBudget, {spent}}}",
        f"+callbacks.comparison_curve={{{curve}}}",
        *bed.words,
    ]


def configuration_of(words: Sequence[str]) -> DictConfig:
    """Compose what `python train.py` would be told by words."""
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        return compose("train", overrides=list(words))


@cache
def configuration_digest(bed_name: str, bed: Bed, algorithm: str) -> str:
    """Return a digest of everything that is configured for an algorithm on a bed, the seed left out."""
    words = words_of(Job(bed_name, algorithm, 0), bed)
    plain = OmegaConf.to_container(configuration_of(words), resolve=True)
    return blake2b(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:_DIGITS]


@cache
def cold_start_name(bed_name: str, bed: Bed, seed: int) -> str:
    """Return the name of the folder of a cold start: bed, seed, and what it is made of."""
    made_of = _cold_start_made_of(bed_name, bed)
    return f"{bed_name}-{seed}-{blake2b(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:_DIGITS]}"


@cache
def _cold_start_made_of(bed_name: str, bed: Bed) -> Mapping[str, str]:
    cfg = configuration_of(cold_start_words(Job(bed_name, _OF_THE_COLD_START, 0), bed))
    return {**cold_start_made_of(cfg), "held_out": str(_without_algorithm(bed.words))}


def code_digest(bed_name: str, bed: Bed) -> str:
    """Return a digest of the library's sources and of whatever else the configuration of a bed names."""
    return _cold_start_made_of(bed_name, bed)["code"][:_DIGITS]


def cold_start_words(job: Job, bed: Bed) -> list[str]:
    """Return the words of a run whose first stages are the cold start of `job`, whatever its algorithm."""
    return words_of(replace(job, algorithm=_OF_THE_COLD_START), replace(bed, words=_without_algorithm(bed.words)))


def _without_algorithm(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for word in words if not word.lstrip("+~").startswith("algorithm."))


def run_folder(out: Path, job: Job) -> Path:
    """Return where a run writes while it goes on."""
    return out / "runs" / f"{job.bed}-{job.algorithm}-{job.seed}"
