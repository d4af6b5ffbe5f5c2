"""The policy at work: engine against trainer, published weights, masks, and what keeps a policy from learning."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from aepo_lightning.app.build import build
from aepo_lightning.app.doctor.finding import Finding, failed, passed, skipped, warned
from aepo_lightning.app.doctor.subject import Subject
from aepo_lightning.contracts.batch import Minibatch
from aepo_lightning.contracts.mask_audit import mask_problem
from aepo_lightning.contracts.objective import Objective, ObjectiveInput, evaluate_objective
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tree import Leaf, RolloutTree
from aepo_lightning.policy.publishing.check import PublicationCheck
from aepo_lightning.rollout import summarise_trees
from aepo_lightning.training.engine_weights import EngineWeights, Probe
from aepo_lightning.training.experience import ExperienceSettings
from aepo_lightning.training.first_iterations import find_alarms
from aepo_lightning.training.metrics import prefixed
from aepo_lightning.training.module import AEPOModule
from aepo_lightning.training.rollout_parts import experience_builder

_CLIPPED = ("clip_fraction_high", "clip_fraction_low", "clip_fraction_dual")
_MOST_RATIO, _STEPS = 100.0, 50
_CHANGES = (0.02, 0.1, 0.5)
"""Sizes of the change that must be seen, tried until the trainer itself sees one."""


def look_at_parity(subject: Subject) -> Iterator[Finding]:
    """Publish the weights and compare engine and trainer on a probe, as each run does after each publication."""
    check = _check(subject)
    gap = _publish(subject, check, 0)
    yield passed(
        f"engine and trainer differ by {gap:.2g} nats over {check.num_tokens} tokens ({check.max_logprob_gap:g} are "
        "allowed)."
    )
    if subject.cfg.publication_check is None:
        yield warned("`publication_check` is null: no run of this configuration looks.", "Leave it on.")


def look_at_publication(subject: Subject) -> Iterator[Finding]:
    """Change the trainer's weights, publish them, and see that the engine's log-probs follow."""
    check, module = _check(subject), subject.module
    _publish(subject, check, 0)
    before = _probe_logprobs(subject)
    for size in _CHANGES:
        with _changed(module, size):
            moved = float((_probe_logprobs(subject) - before).abs().mean())
            gap = _publish(subject, check, 1) if moved > check.max_logprob_gap else None
        if gap is not None:
            break
    _publish(subject, check, 2)
    if gap is None:
        yield warned(f"the trainer's log-probs moved by {moved:.2g} nats only, too little to be looked for.")
    else:
        yield passed(f"a change of {moved:.2g} nats of the trainer's weights reached the engine, up to {gap:.2g} nats.")


def _check(subject: Subject) -> PublicationCheck:
    found: PublicationCheck | None = build(subject.cfg.publication_check)
    return found or PublicationCheck()


def _probe(subject: Subject) -> Probe:
    parts = subject.datamodule.sampler.parts
    prompt = parts.chat_format.encode_prompt(subject.question.messages)
    return Probe(prompt_ids=prompt, temperature=parts.settings.temperature or 1.0)


def _publish(subject: Subject, check: PublicationCheck, version: int) -> float:
    """Publish and check; return by how much log-probs of engine and trainer differ."""
    probe = _probe(subject)
    EngineWeights(engine=subject.engine, check=check, archive=None).publish(subject.module, version, probe)
    return check.metrics["logprob_gap"]


def _probe_logprobs(subject: Subject) -> Tensor:
    """Return what the trainer says of the tokens of the prompt."""
    prompt = torch.tensor([list(_probe(subject).prompt_ids)[:256]], device=subject.module.device)
    mask = torch.ones(1, prompt.shape[1] - 1, dtype=torch.bool, device=prompt.device)
    with torch.no_grad(), subject.module.evaluating():
        scores = subject.module.trained_network()(prompt, mask)
    logprobs: Tensor = scores.logprobs
    return logprobs


@contextmanager
def _changed(module: AEPOModule, size: float) -> Iterator[None]:
    """Change what is trained for a while: the vectors, such as those of norms, or everything of an adapter."""
    trained = [each for each in module.trained_network().parameters() if each.requires_grad]
    chosen: list[nn.Parameter] = [each for each in trained if each.ndim == 1] or trained
    kept = [each.detach().clone() for each in chosen]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in chosen:
            each.add_(size * torch.randn(each.shape, generator=generator).to(each))
    try:
        yield
    finally:
        with torch.no_grad():
            for each, old in zip(chosen, kept, strict=True):
                each.copy_(old)


def look_at_masks(subject: Subject) -> Iterator[Finding]:
    """Compare what would be trained on with the trees that it comes from, and show one trajectory."""
    trees = subject.trees
    batches = [batch for minibatch in _minibatches(subject) for batch in minibatch.micro_batches]
    for batch in batches:
        if problem := mask_problem(trees, batch):
            yield failed(problem, "A part of the update that is not this library's may have changed the batch.")
            return
    gaps = [
        (batch.old_logprobs - batch.sampler_logprobs)[batch.response_mask].abs()
        for batch in batches
        if batch.old_logprobs is not None
    ]
    gap = f"; there engine and trainer differ by {float(torch.cat(gaps).mean()):.2g} nats" if gaps else ""
    yield passed(f"{_described(subject, trees)}{gap}.")


def _described(subject: Subject, trees: list[RolloutTree]) -> str:
    """Say what of the trajectory with the most tool calls is trained."""
    tree, leaf = max(((tree, leaf) for tree in trees for leaf in tree.leaves), key=lambda pair: pair[1].num_tool_calls)
    counts = _counts(tree, leaf)
    own = [segment for segment in tree.path(leaf.segment_id) if segment.source is SegmentSource.POLICY]
    shown = " ".join(subject.datamodule.decode(own[0].token_ids).split())[:48] if own else ""
    return (
        f"{sum(len(tree.leaves) for tree in trees)} trajectories audited; in one with {leaf.num_tool_calls} calls "
        f"{counts[SegmentSource.POLICY]} sampled tokens are trained ({shown!r} first), {counts[SegmentSource.PROMPT]} "
        f"of the prompt and {counts[SegmentSource.TOOL]} of tool results are not"
    )


def _counts(tree: RolloutTree, leaf: Leaf) -> dict[SegmentSource, int]:
    path = tree.path(leaf.segment_id)
    return {
        source: sum(len(each.token_ids) for each in path if each.source is source)
        for source in (SegmentSource.POLICY, SegmentSource.PROMPT, SegmentSource.TOOL)
    }


def _experience(subject: Subject) -> ExperienceSettings:
    settings: ExperienceSettings = build(subject.cfg.experience)
    return settings


def _minibatches(subject: Subject) -> list[Minibatch]:
    policy: PolicySource = subject.policy
    settings = _experience(subject)
    limit = subject.cfg.rollout.sampling.max_response_tokens
    builder = experience_builder(subject.algorithm, settings, policy.tokenizer.pad_token_id or 0, limit)
    module = subject.module
    reference = module.score_reference if module.uses_reference else None
    with module.evaluating():
        return builder.build(subject.trees, module.score, reference)


def look_at_clip_range(subject: Subject) -> Iterator[Finding]:
    """Ask the objective about ratios, and see whether they can leave 1 within the steps of an iteration."""
    algorithm, settings = subject.algorithm, _experience(subject)
    num_steps = settings.num_steps(int(subject.cfg.data.questions_per_iteration))
    clips = clips_any_ratio(algorithm.objective)
    if clips is None:
        yield skipped(f"{type(algorithm.objective).__name__} does not say what it clips.")
    elif not clips:
        yield warned(
            f"never fires: no ratio from {1 / _MOST_RATIO:g} to {_MOST_RATIO:g} is beyond it.",
            "Narrow algorithm.objective.clip_range_low and clip_range_high.",
        )
    elif num_steps == 1 and settings.old_logprobs != "sampler":
        yield warned(
            "never fires: an iteration is one optimiser step on fresh rollouts, so that every ratio is exactly 1, and "
            f"what {algorithm.name} does beyond the range has no effect.",
            "Lower experience.questions_per_step or raise experience.num_epochs, if that is not meant.",
        )
    else:
        yield passed(
            f"{num_steps} optimiser steps on the same rollouts move ratios; what is beyond the range is clipped."
        )


def clips_any_ratio(objective: Objective) -> bool | None:
    """Return whether an objective counts any ratio as clipped, for either sign of the advantage.

    Args:
        objective: Asked about ratios from 1/100 to 100.

    Returns:
        None if it does not say.
    """
    ratios = torch.linspace(-math.log(_MOST_RATIO), math.log(_MOST_RATIO), 2 * _STEPS).repeat(2)[:, None]
    old = torch.full_like(ratios, -math.log(_MOST_RATIO))
    signs = torch.ones_like(ratios)
    signs[: len(ratios) // 2] = -1.0
    inputs = ObjectiveInput(
        logprobs=old + ratios,
        old_logprobs=old,
        advantages=signs,
        response_mask=torch.ones_like(ratios, dtype=torch.bool),
        old_entropies=torch.ones_like(ratios),
    )
    metrics = evaluate_objective(objective, inputs).metrics
    found = [metrics[name].value() for name in _CLIPPED if name in metrics]
    return any(value > 0 for value in found) if found else None


def look_for_alarms(subject: Subject) -> Iterator[Finding]:
    """See in some rollouts whether anything can be learned, as each run does in its first iterations."""
    trees = subject.trees
    if subject.is_untrained:
        yield skipped("the policy is to learn the task in its cold start first; train.py looks after it.")
        return
    minibatches = _minibatches(subject)
    tally = summarise_trees(trees, subject.datamodule.sampler.parts.settings.turn_entropy)
    found = find_alarms(trees, prefixed("rollout", tally.means()), minibatches, subject.tools)
    num = sum(len(tree.leaves) for tree in trees)
    for _, line in found:
        yield warned(f"in {num} trajectories: {line}")
    if not found:
        yield passed(f"{num} trajectories call tools, earn different rewards and branch where they may.")
