"""Chains grown on from a node with the weights, seeds and results of the run, and what differs from the saved one."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from aepo_lightning.app.build import build, build_data, build_engine
from aepo_lightning.app.kept_weights import KeptWeights, named_weights_file, nearest_weights
from aepo_lightning.app.node import Node, NodeName, find_node
from aepo_lightning.app.regrow.start import Start, find_start
from aepo_lightning.app.regrow.tools import JournalTools, RecordedCalls
from aepo_lightning.app.replay import BUILT
from aepo_lightning.app.saved_run import first_policy, load_config, saved_adapter
from aepo_lightning.app.threads import set_threads
from aepo_lightning.app.view.token_text import TokenTexts
from aepo_lightning.contracts.question import Question, SegmentSource
from aepo_lightning.contracts.tool import BranchingToolRunner
from aepo_lightning.contracts.tree import Leaf, RolloutTree, Segment
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.judging import Unjudged
from aepo_lightning.event_loop import run_in_event_loop
from aepo_lightning.policy.end_tokens import eos_token_ids
from aepo_lightning.rollout import GroupRecord, GroupRollout, RolloutParts, question_digest, record_of
from aepo_lightning.rollout.sampler import first_error
from aepo_lightning.training.datamodule import RolloutDataModule
from aepo_lightning.training.question_stream import QuestionStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What somebody wants of a node."""

    edit: str | None = None
    """What is to stand there: a result, a question, or the words with which a turn begins. None changes nothing."""
    samples: int = 1
    """Continuations. The first has the saved seeds, each further one its own."""
    seed: int | None = None
    """In place of the tree's."""
    iteration: int | None = None
    checkpoint: Path | None = None
    """A checkpoint or a safetensors file in place of the weights that grew the tree."""
    is_offline: bool = False
    """Whether calls that are not on record are refused, and a reward that takes time is not asked."""

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        if self.samples < 1:
            raise ConfigError(f"`--samples` must be at least 1, but got {self.samples}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first token in which two trajectories differ."""

    place: int
    """In the response; behind its end where one of them is over."""
    saved: int | None
    regrown: int | None
    """Ids of the tokens. None where a trajectory is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrownChain:
    """A continuation."""

    tree: RolloutTree
    """Of this chain alone."""
    tools: JournalTools
    """Where its results came from."""
    difference: Difference | None
    """None if the policy wrote the same, and it ended in the same way."""
    num_compared: int
    """Tokens that the policy wrote, up to the first difference."""
    logprob_gap: float
    """Largest difference of their log-probs from those on record, in nats."""

    @property
    def leaf(self) -> Leaf:
        """Its end."""
        return self.tree.leaves[0]

    @property
    def path(self) -> Sequence[Segment]:
        """Its segments, from the prompt on."""
        return self.tree.path(self.leaf.segment_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Regrown:
    """What came of a node."""

    node: Node
    wish: Wish
    start: Start
    weights: KeptWeights
    chains: Sequence[GrownChain]
    texts: TokenTexts
    notes: Sequence[str]
    """What is not as it was."""

    @property
    def must_be_same(self) -> bool:
        """Whether the first continuation has all that the saved one came from."""
        same_weights = self.weights.version == self.node.tree.weights_version
        return self.wish.edit is None and self.wish.seed is None and same_weights


def regrow(folder: Path, name: NodeName, wish: Wish, allowed: Sequence[str] = ()) -> Regrown:
    """Grow a trajectory on from a node of a saved tree.

    Args:
        folder: Of the run.
        name: Of the node.
        wish: What is to be different, and how often.
        allowed: What the configuration in the folder may call beside the parts of this library.

    Raises:
        ConfigError: If there is no such node, the edit cannot stand there, or the configuration would call what is not
            allowed.
        DataError: If a file is damaged.
    """
    cfg = load_config(folder, allowed, BUILT)
    node = find_node(folder, name, wish.iteration)
    set_threads(cfg.num_threads)
    policy, lora = first_policy(cfg, folder), saved_adapter(cfg)
    version = node.tree.weights_version
    if wish.checkpoint is None:
        weights = nearest_weights(folder, policy, lora, version)
    else:
        weights = named_weights_file(wish.checkpoint, policy, lora)
    engine = build_engine(cfg, policy)
    try:
        data = build_data(cfg, engine, build(cfg.algorithm), folder)
        parts = _parts(data, policy.tokenizer, wish)
        question, notes = _question(data, node, parts)
        start = find_start(node, question, wish.edit, parts, eos_token_ids(policy))
        engine.load_weights(weights.load().items(), version if weights.version is None else weights.version)
        trees = run_in_event_loop(_grow_all(node, start, wish, parts))
    finally:
        engine.close()
    chains = [compare(node, start, tree, tools) for tree, tools in trees]
    return Regrown(
        node=node, wish=wish, start=start, weights=weights, chains=chains, texts=TokenTexts(policy.tokenizer),
        notes=notes,
    )  # fmt: skip


def _parts(data: RolloutDataModule, tokenizer: PreTrainedTokenizerBase, wish: Wish) -> RolloutParts:
    """Return the parts of the run without what could end a trajectory otherwise than it did: clocks and failures."""
    parts = data.prepare_sampler(tokenizer).parts
    is_asked = not wish.is_offline or getattr(parts.reward, "is_immediate", False)
    return replace(
        parts,
        reward=parts.reward if is_asked else Unjudged(),
        settings=replace(parts.settings, timeout_s=None),
        scoring=replace(parts.scoring, on_error="abstain"),
    )


def _question(data: RolloutDataModule, node: Node, parts: RolloutParts) -> tuple[Question, list[str]]:
    """Return the question with its own documents, which the journal does not have, as the task gives it again."""
    saved, digest = node.tree.question, node.tree.question_digest
    found = QuestionStream(task=data.task, questions_per_iteration=1).asked(saved.question_id)
    if found is not None and (question_digest(found, parts.chat_format) == digest or not digest):
        return found, []
    return saved, ["The task has another question in this place, so documents of the question itself are not there."]


async def _grow_all(
    node: Node, start: Start, wish: Wish, parts: RolloutParts
) -> list[tuple[RolloutTree, JournalTools]]:
    """Grow all continuations at once."""
    tree, tools, chain = node.tree, parts.tools, node.leaf.seed_path
    assert isinstance(tools, BranchingToolRunner), "a run builds such a runner"
    recorded = RecordedCalls.of(tree, chain, tools.specs)
    is_as_it_was = wish.edit is None and wish.seed is None
    timeouts = record_of(tree).timeouts if is_as_it_was else {}

    async def grow(number: int) -> tuple[RolloutTree, JournalTools]:
        own_tools = JournalTools(recorded=recorded, tools=tools, is_offline=wish.is_offline)
        path = (*chain, "again", number) if number else chain
        own = replace(start.continuation, seed_path=path)
        own_parts = own.parts(replace(parts, tools=own_tools))
        seed = tree.seed if wish.seed is None else wish.seed
        group = GroupRollout(own_parts, start.question, seed, GroupRecord(timeouts=timeouts))
        return await group.grow_on(own), own_tools

    try:
        if not wish.is_offline:
            await tools.start()
        async with asyncio.TaskGroup() as tasks:
            grown = [tasks.create_task(grow(number)) for number in range(wish.samples)]
    except BaseExceptionGroup as errors:
        raise first_error(errors) from errors
    finally:
        if not wish.is_offline:
            await tools.close()
    return [each.result() for each in grown]


def compare(node: Node, start: Start, tree: RolloutTree, tools: JournalTools) -> GrownChain:
    """Compare what the policy writes from the node on with what it wrote then."""
    old, new = node.path[start.first_written :], tree.path(tree.leaves[0].segment_id)[start.first_written :]
    tokens = [[token for each in path for token in each.token_ids] for path in (old, new)]
    numbers = [list(_logprobs(path)) for path in (old, new)]
    pairs = enumerate(zip(*tokens, strict=False))
    same = next((place for place, (one, other) in pairs if one != other), min(map(len, tokens)))
    difference = None
    if tokens[0] != tokens[1] or node.leaf.stop_reason is not tree.leaves[0].stop_reason:
        before = tree.path(tree.leaves[0].segment_id)[: start.first_written]
        place = sum(len(each.token_ids) for each in before[1:]) + same
        one, other = (next(iter(each[same:]), None) for each in tokens)
        difference = Difference(place=place, saved=one, regrown=other)
    begun = start.continuation.begun
    compared = slice(0 if begun is None else len(begun.token_ids), same)
    pairs_of_numbers = zip(numbers[0][compared], numbers[1][compared], strict=True)
    gaps = [abs(one - other) for one, other in pairs_of_numbers if one is not None and other is not None]
    return GrownChain(
        tree=tree, tools=tools, difference=difference, num_compared=len(gaps), logprob_gap=max(gaps, default=0.0)
    )


def _logprobs(path: Sequence[Segment]) -> Iterator[float | None]:
    """Yield the log-prob of each token; None for those that the policy has not written."""
    for each in path:
        if each.source is SegmentSource.POLICY:
            yield from each.logprobs
        else:
            yield from (None for _ in each.token_ids)
