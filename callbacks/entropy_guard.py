"""Watches whether a run is stable, and does about it what it was told to."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override

from aepo_lightning.callbacks.guard_acts import (
    ACTS,
    LOWER_RATE,
    RAISE_PENALTY,
    ROLL_BACK,
    STEER_ENTROPY,
    lower_rates,
    newest_good,
    raise_penalty,
    roll_back,
    saver_of,
)
from aepo_lightning.callbacks.guard_settings import GuardSettings, check_surroundings
from aepo_lightning.callbacks.guard_steering import EntropySteering
from aepo_lightning.callbacks.logger_media import log_text
from aepo_lightning.callbacks.stability import KINDS, StabilityWatch, Verdict
from aepo_lightning.callbacks.stability_limits import Limits, Observation
from aepo_lightning.callbacks.trainer_parts import branching_rollouts_of, rollouts_of
from aepo_lightning.contracts.branching import PenalisedBranchPolicy
from aepo_lightning.contracts.rollouts import BranchingRollouts
from aepo_lightning.distributed.collectives import from_rank_zero

logger = logging.getLogger(__name__)

_MEANS = ("train/approx_kl", "train/clip_fraction_high", "train/clip_fraction_low")
_TAIL = "train/importance_ratio_p99"


class EntropyGuard(L.Callback):
    """Warns when a run becomes unstable, in either direction, and acts if it is told to.

    After every iteration level, slope and variance of the rollouts' entropy, the tails of the update, repetition and
    the share of groups without a signal are judged by `StabilityWatch`. What is alarming is said in one line when it
    begins. An alarm of a kind in `act_on` takes the next of `acts`, each once, and none for `cooldown` iterations
    after. So the guard acts at most as often as there are `acts`, over all resumes of a run. Without `acts` it only
    warns, and the run computes the same numbers as without it.

    Logs, once per iteration, `guard/entropy_low` and `guard/entropy_high`, `guard/KIND` for each kind of alarm,
    `guard/act` and `guard/num_acts`. Lines go to the log and, those of an iteration together as the text
    `guard/events`, to the loggers that take texts.
    """

    def __init__(self, limits: Limits | None = None, settings: GuardSettings | None = None) -> None:
        """Keep limits and acts.

        Args:
            limits: What is too much. Default: as `Limits()`.
            settings: What to do about it. Default: warn.
        """
        super().__init__()
        self._settings = settings or GuardSettings()
        self._watch = StabilityWatch(limits or Limits())
        self._steering = EntropySteering(self._settings)
        self._num_acts = 0
        self._num_quiet = 0
        """Iterations in which nothing is done, whatever the alarm."""
        self._told: set[str] = set()
        self._good: list[int] = []
        """Iterations after which the weights were good, as far as their checkpoints are there."""
        self._penalty: float | None = None
        self._rollouts: BranchingRollouts | None = None
        self._steps: dict[str, list[float]] = {}
        self._lines: list[str] = []
        """What was said in this iteration."""

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that there is what is watched and acted upon.

        Raises:
            ConfigError: If not.
        """
        if stage != "fit":
            return
        rollouts_of(trainer, "metrics")
        check_surroundings(self._settings.names, trainer, pl_module)
        if RAISE_PENALTY in self._settings.names:
            self._rollouts = branching_rollouts_of(trainer)
            self._apply_penalty()

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the weight of the entropy bonus, if it is steered. The rollouts' entropy is a mean over all ranks."""
        self._steps = {}
        entropy = rollouts_of(trainer, "metrics").metrics.get("rollout/entropy", math.nan)
        self._steering.steer(pl_module, trainer.current_epoch, entropy)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Take the figures of the optimiser step."""
        found = trainer.callback_metrics  # which is put together anew each time
        for name in (*_MEANS, _TAIL):
            if name in found:
                self._steps.setdefault(name, []).append(float(found[name]))

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge the iteration, tell what is new, and act; checkpoints are written after this."""
        seen = from_rank_zero(self._observation(rollouts_of(trainer, "metrics").metrics))
        verdict = self._watch.observe(seen)
        self._note_good(trainer, verdict)
        self._tell(trainer, verdict)
        code = self._act(trainer, pl_module, verdict)
        lines, self._lines = self._lines, []
        if lines and trainer.is_global_zero:
            log_text(trainer, "guard/events", "\n\n".join(lines))  # at once: loggers keep one text of a step
        values = {f"guard/{kind}": float(kind in verdict.kinds) for kind in KINDS}
        values |= {"guard/act": float(code), "guard/num_acts": float(self._num_acts), "guard/entropy_low": verdict.low}
        if math.isfinite(verdict.high):
            values["guard/entropy_high"] = verdict.high
        for name, value in values.items():
            pl_module.log(name, value, sync_dist=True, rank_zero_only=True)

    def _observation(self, metrics: Mapping[str, float]) -> Observation:
        def mean(*names: str) -> float:
            found = [value for name in names for value in self._steps.get(name, ())]
            return sum(found) / max(len(self._steps.get(names[0], ())), 1) if found else math.nan

        return Observation(
            entropy=metrics.get("rollout/entropy", math.nan),
            reward=metrics.get("rollout/reward", math.nan),
            zero_variance=metrics.get("rollout/zero_variance_groups_fraction", math.nan),
            repetition=metrics.get("rollout/repetition_fraction", math.nan),
            kl=mean(_MEANS[0]),
            clip_fraction=mean(*_MEANS[1:]),
            ratio_tail=max(self._steps.get(_TAIL, ()), default=math.nan),
        )

    def _note_good(self, trainer: L.Trainer, verdict: Verdict) -> None:
        """Rollouts that raise no suspicion say that the weights were good that they were made with.

        These are what the iteration before left, or, where rollouts grow beside the update, the one before that.
        """
        if ROLL_BACK not in self._settings.names:
            return
        saver = saver_of(trainer)
        saved = from_rank_zero(sorted(saver.saved_iterations()))
        is_stale = rollouts_of(trainer, "metrics").metrics.get("rollout/staleness_steps", 0.0) > 0
        before = trainer.current_epoch - 1 - is_stale
        if not verdict.is_suspicious and before >= 0:
            self._good.append(before)
        self._good = [each for each in self._good if each in saved or each == before]
        saver.kept_iteration = max((each for each in self._good if each in saved), default=None)

    def _tell(self, trainer: L.Trainer, verdict: Verdict) -> None:
        new = [alarm for alarm in verdict.alarms if alarm.kind not in self._told]
        self._told = set(verdict.kinds)
        for alarm in new:
            will = "the next of `acts` follows" if self._may_act(verdict) else "the run goes on as it is"
            self._say(trainer, f"{alarm.kind}: the {alarm.reason}; {will}. docs/guard.md has what helps.")

    def _say(self, trainer: L.Trainer, line: str) -> None:
        if trainer.is_global_zero:
            logger.warning("Iteration %d, %s", trainer.current_epoch, line)
        self._lines.append(line)

    def _may_act(self, verdict: Verdict) -> bool:
        is_wanted = any(kind in self._settings.act_on for kind in verdict.kinds)
        return is_wanted and self._num_quiet == 0 and self._num_acts < len(self._settings.acts)

    def _act(self, trainer: L.Trainer, pl_module: L.LightningModule, verdict: Verdict) -> int:
        """Take the next of the acts if it is time; return the code of the last part of it."""
        if not self._may_act(verdict):
            self._num_quiet = max(self._num_quiet - 1, 0)
            return 0
        names = self._settings.rungs[self._num_acts]
        self._num_acts += 1
        self._num_quiet = self._settings.cooldown
        for name in names:
            line = self._do(name, trainer, pl_module)
            self._say(trainer, f"{name} (act {self._num_acts} of {len(self._settings.acts)}): {line}.")
        self._watch.restart()
        self._told = set()
        code: int = ACTS.index(names[-1]) + 1
        return code

    def _do(self, name: str, trainer: L.Trainer, pl_module: L.LightningModule) -> str:
        line = "the run stops"
        if name == LOWER_RATE:
            line = lower_rates(trainer, self._settings.rate_factor)
        elif name == RAISE_PENALTY:
            line, self._penalty = raise_penalty(branching_rollouts_of(trainer), self._settings.penalty_step)
        elif name == STEER_ENTROPY:
            line = self._steering.begin(pl_module, self._watch.baseline)
        elif name == ROLL_BACK:
            line = self._roll_back(trainer)
        else:
            trainer.should_stop = True
        return line

    def _roll_back(self, trainer: L.Trainer) -> str:
        found = newest_good(saver_of(trainer), self._good)
        if found is None:
            return "there is no checkpoint of before, so nothing is rolled back"
        self._good = [found[0], trainer.current_epoch]  # which is saved with these weights
        line: str = roll_back(trainer, *found)
        return line

    def _apply_penalty(self) -> None:
        if self._rollouts is not None and self._penalty is not None:
            policy = self._rollouts.branch_policy
            assert isinstance(policy, PenalisedBranchPolicy), "`setup` has checked it"
            self._rollouts.branch_policy = policy.with_penalty(self._penalty)

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the rollouts."""
        self._rollouts = None

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return what was seen and done, as plain values."""
        return {
            "watch": self._watch.state_dict(),
            "steering": self._steering.state_dict(),
            "num_acts": self._num_acts,
            "num_quiet": self._num_quiet,
            "told": sorted(self._told),
            "good": list(self._good),
            "penalty": self._penalty,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what was seen and done. States that say nothing of it leave the guard as it begins."""
        if "watch" not in state_dict:
            return
        self._watch.load_state_dict(state_dict["watch"])
        self._steering.load_state_dict(state_dict["steering"])
        self._num_acts, self._num_quiet = state_dict["num_acts"], state_dict["num_quiet"]
        self._told, self._good = set(state_dict["told"]), list(state_dict["good"])
        self._penalty = state_dict["penalty"]
        self._apply_penalty()
