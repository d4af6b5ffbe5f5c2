"""What is read of a run or an evaluation to show its trees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from aepo_lightning.app.build import build
from aepo_lightning.app.run_folder import CONFIG
from aepo_lightning.app.saved_trees import RolloutFiles, judged, opened_folder, verdicts_of
from aepo_lightning.app.user_parts import with_functions
from aepo_lightning.app.view.decisions import Explainer
from aepo_lightning.app.view.token_text import TokenTexts
from aepo_lightning.app.view.updates import TreeKey, TreeUpdate, key_of, read_updates, updates_path
from aepo_lightning.contracts.advantage import estimate_advantages
from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.results import Pair, TrajectoryResult
from aepo_lightning.rollout import RolloutJournal, read_unfinished
from aepo_lightning.training.algorithm import Algorithm
from aepo_lightning.training.group_rows import GroupRows

OF_UPDATE = ("gap", "ratio", "clip")
"""What only the update knows of a token."""
_EVALUATED = "Evaluations sample independent trajectories: nothing branches, and nothing is trained."


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedFolder:
    """The folder of a run or an evaluation, ready to be shown."""

    path: Path
    texts: TokenTexts
    explainer: Explainer
    verdicts: Mapping[Pair, TrajectoryResult]
    algorithm: Algorithm | None
    """Of a run. None for an evaluation, or where it cannot be built."""
    max_response_tokens: int | None
    absences: Mapping[str, str]
    """What no record has, by name, and why."""

    @classmethod
    def open(cls, path: Path, allowed: Sequence[str] = ()) -> "OpenedFolder":
        """Read configuration, tokenizer and verdicts.

        Args:
            path: Of the run or evaluation.
            allowed: What its configuration may call beside the parts of this library.

        Raises:
            ConfigError: If the folder is neither, or its tokenizer cannot be had.
            DataError: If a file is damaged.
        """
        cfg, policy = opened_folder(path, allowed, ("model", "algorithm"))
        is_run = (path / CONFIG).is_file()
        algorithm, absence = _algorithm(cfg) if is_run else (None, _EVALUATED)
        rule = None if algorithm is None else algorithm.branch_policy
        explainer = Explainer(
            rule=rule,
            absence=absence,
            can_branch=is_run,
            penalty_scope="chain" if algorithm is None else algorithm.penalty_scope,
            branch_baseline="root" if algorithm is None else algorithm.branch_baseline,
        )
        return cls(
            path=path,
            texts=TokenTexts(policy.tokenizer),
            explainer=explainer,
            verdicts={} if is_run else verdicts_of(path),
            algorithm=algorithm,
            max_response_tokens=OmegaConf.select(cfg, "rollout.sampling.max_response_tokens"),
            absences=_absences(algorithm, absence, is_run),
        )

    def trees(self, files: RolloutFiles) -> list[RolloutTree]:
        """Return the finished trees of an iteration or benchmark, with times and verdicts where there are any.

        Lines that are damaged are logged and left out.
        """
        found = [tree for path in files.paths for tree in RolloutJournal(path.parent).read_timed(path.stem)]
        return [judged(tree, self.verdicts) for tree in found]

    def unfinished(self, files: RolloutFiles, finished: Sequence[RolloutTree]) -> list[RolloutTree]:
        """Return what is on file of the other trees of an iteration or benchmark, whose rollout is not over.

        Args:
            files: Of the iteration or benchmark.
            finished: Its finished trees.
        """
        known = set(map(key_of, finished))
        return [tree for path in files.steps for tree in read_unfinished(path) if key_of(tree) not in known]

    def updates(self, files: RolloutFiles) -> Mapping[TreeKey, TreeUpdate]:
        """Return what the update made of the tokens of trees, where its steps were made again."""
        return read_updates(updates_path(self.path, files.name))

    def advantages(self, tree: RolloutTree) -> list[float | None] | None:
        """Return the advantage of each trajectory before any shaping of tokens, as the configuration estimates it."""
        algorithm = self.algorithm
        if algorithm is None or "advantage" in self.absences:
            return None
        is_known = all(leaf.reward is not None for leaf in tree.leaves)
        if not is_known or not tree.scored_leaves:
            return None
        overlong, limit = algorithm.overlong, self.max_response_tokens
        rows = GroupRows(
            advantage_estimator=algorithm.advantage_estimator,
            leaf_weights=algorithm.leaf_weights,
            overlong=None if overlong is None or limit is None else overlong.within(limit),
        )
        group, is_weighted = rows.group_of(tree), algorithm.leaf_weights != "uniform"
        values = estimate_advantages(algorithm.advantage_estimator, group, is_weighted=is_weighted).tolist()
        by_leaf = {id(leaf): value for leaf, value in zip(group.leaves, values, strict=True)}
        return [by_leaf.get(id(leaf)) for leaf in tree.leaves]


def _algorithm(cfg: DictConfig) -> tuple[Algorithm | None, str]:
    try:
        found = build(with_functions(cfg.algorithm, "algorithm"))
    except ConfigError as error:
        return None, f"The algorithm of the configuration cannot be built here: {error}"
    return (found, "") if isinstance(found, Algorithm) else (None, "The configuration has no `Algorithm`.")


def _absences(algorithm: Algorithm | None, why: str, is_run: bool) -> dict[str, str]:
    of_update = (
        "Not on record: rollouts are saved before the update, which saves no value of single tokens. "
        "aepo-view RUN --relive makes its steps again."
    )
    found = dict.fromkeys(OF_UPDATE, of_update if is_run else _EVALUATED)
    if algorithm is None:
        found["advantage"] = why
    elif algorithm.normalize_over == "step":
        found["advantage"] = "Not on record: advantages were whitened over the optimiser step."
    return found
