"""Builders and fakes that several test files share: tiny policies, a scripted engine, rollout parts."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

import torch

from aepo_lightning.branching import NeverBranch
from aepo_lightning.budgets import RootShare
from aepo_lightning.chat_formats.tags import TagFormat
from aepo_lightning.contracts.branching import BranchContext
from aepo_lightning.contracts.generation import FinishReason, Generation, SamplingParams
from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.policy.source import ScratchPolicy
from aepo_lightning.policy.tokenizers import build_byte_tokenizer, build_word_tokenizer
from aepo_lightning.rewards import PaperReward
from aepo_lightning.rollout import RolloutParts, RolloutSampler, RolloutSettings
from aepo_lightning.rollout.turn_entropy import TurnEntropy
from aepo_lightning.tools import DocumentSearch, ToolRuntime

PLACES = tuple(f"e{number}" for number in range(8))
WORDS = (
    *("<think>", "</think>", "<search>", "</search>", "<python>", "</python>", "<browse>", "</browse>"),
    *("<result>", "</result>", "<answer>", "</answer>", "\\boxed{", "}", "find", "go", *PLACES),
)
CALL = "<search> e1 </search>"
ANSWER = "<think> go </think> <answer> \\boxed{ e2 } </answer>"


def word_tokenizer():
    return build_word_tokenizer(WORDS)


def tiny_policy(model_type="qwen3", tokenizer=None, **fields) -> ScratchPolicy:
    """A two-layer policy whose random weights are large enough for uneven distributions."""
    architecture = {
        "model_type": model_type,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.4,
        "tie_word_embeddings": False,
    }
    if model_type == "qwen3":
        architecture["head_dim"] = 8
    return ScratchPolicy(tokenizer=tokenizer or build_byte_tokenizer(), architecture=architecture | fields)


@torch.no_grad()
def with_head_bias(policy) -> ScratchPolicy:
    """The same policy, whose head has a bias that is not zero if it has one at all."""
    build = policy.build_model

    def build_model():
        model = build()
        if model.lm_head.bias is not None:
            torch.nn.init.normal_(model.lm_head.bias, std=2.0, generator=torch.Generator().manual_seed(4))
        return model

    policy.build_model = build_model
    return policy


@torch.no_grad()
def reference_scores(model, token_ids, start, temperature=1.0):
    """Log-probs and entropies of `token_ids[start:]` by one plain forward pass without any cache."""
    logits = model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0, start - 1 : -1]
    log_p = torch.log_softmax(logits.double() / temperature, dim=-1)
    targets = torch.tensor(token_ids[start:])
    return log_p[range(len(targets)), targets].tolist(), (-(log_p.exp() * log_p).sum(-1)).tolist()


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What the scripted policy writes in one turn."""

    text: str
    ends: bool = False
    """Whether the end-of-sequence token follows."""
    entropy: float = 1.0
    """Of every token of the turn, in nats."""


@dataclass(eq=False)
class ScriptedEngine:
    """An engine that writes what a function of the prompt's text and the sampling parameters says."""

    script: Callable[[str, SamplingParams], Turn]
    max_model_len: int = 400
    tokenizer: object = field(default_factory=word_tokenizer)
    pauses: Callable[[SamplingParams], int] = lambda _: 0
    """How many turns of the event loop a generation takes on top."""
    requests: list[tuple[list[int], SamplingParams]] = field(default_factory=list)
    num_running: int = 0

    async def generate(self, prompt_ids, params, on_probe=None):
        self.requests.append((list(prompt_ids), params))
        assert len(prompt_ids) + params.max_tokens <= self.max_model_len
        self.num_running += 1
        try:
            return await self._generate(prompt_ids, params, on_probe)
        finally:
            self.num_running -= 1

    async def _generate(self, prompt_ids, params, on_probe):
        turn = self.script(self.tokenizer.decode(prompt_ids), params)
        token_ids = self.tokenizer.encode(turn.text, add_special_tokens=False)
        token_ids += [self.tokenizer.eos_token_id] * turn.ends
        reason = FinishReason.EOS if turn.ends else FinishReason.STOP
        if len(token_ids) > params.max_tokens:
            token_ids, reason = token_ids[: params.max_tokens], FinishReason.LENGTH
        assert reason is not FinishReason.STOP or turn.text.endswith(params.stop)
        for _ in range(1 + self.pauses(params)):
            await asyncio.sleep(0)
        if on_probe is not None:
            on_probe(self._generation(turn, token_ids[: params.num_probe_tokens], params, FinishReason.LENGTH))
        for _ in range(1 + self.pauses(params)):
            await asyncio.sleep(0)
        return self._generation(turn, token_ids, params, reason)

    def _generation(self, turn, token_ids, params, reason):
        number = len(token_ids)
        return Generation(
            token_ids=token_ids,
            logprobs=[-0.5] * number,
            entropies=[turn.entropy] * number,
            finish_reason=reason,
            top_logprobs=[[-0.5] * params.num_top_logprobs] * number if params.num_top_logprobs else [],
        )

    def sleep(self):
        """Nothing to free."""

    def load_weights(self, weights, version):
        pass

    def close(self):
        pass


def random_script(p_call=0.6, p_cut=0.1, spread=1.0):
    """A policy that calls, answers or writes without end by chance, with random entropies, as the seed says."""

    def script(text, params):
        random = Random(params.seed)
        entropy = spread * random.random()
        draw = random.random()
        place = random.choice(PLACES)
        if draw < p_call:
            tag = random.choice(("search", "search", "browse"))
            text = random.choice((f"<{tag}> {place} </{tag}>", f"go <{tag}> </{tag}>", f"{place} </{tag}>"))
            return Turn(text=text, entropy=entropy)
        if draw < p_call + p_cut:
            return Turn(text=f"go {place} " * 200, entropy=entropy)
        return Turn(text=ANSWER, ends=True, entropy=entropy)

    return script


def calls_then_answer(num_calls, entropy=lambda _: 1.0):
    """A policy that makes `num_calls` calls and answers; the entropy depends on the number of results so far."""

    def script(text, params):
        done = text.count("</result>")
        return Turn(text=CALL if done < num_calls else ANSWER, ends=done >= num_calls, entropy=entropy(done))

    return script


@dataclass
class RecordingBranchPolicy:
    """Branches as a function of the context says, and remembers every context."""

    rule: Callable[[BranchContext], int] = lambda _: 1
    contexts: list[BranchContext] = field(default_factory=list)

    def num_branches(self, context):
        self.contexts.append(context)
        return self.rule(context)


@dataclass(frozen=True, kw_only=True)
class RootChains:
    """An allocator that starts the same number of chains at the root, whatever the budget is."""

    num_root_chains: int

    @property
    def needs_probe(self):
        return False

    def global_budget(self, total, root_entropy, tool_entropies):  # noqa: ARG002
        return self.num_root_chains


@dataclass(frozen=True, kw_only=True)
class ScriptedBudget:
    """An allocator that asks for a probe and returns a number of its own; it remembers what it saw."""

    num_root_chains: int = 1
    seen: list = field(default_factory=list)

    @property
    def needs_probe(self):
        return True

    def global_budget(self, total, root_entropy, tool_entropies):
        self.seen.append((total, root_entropy, list(tool_entropies)))
        return min(self.num_root_chains, total)


def make_question(question_id="q", text="find e0", answers=("e2",)) -> Question:
    documents = {place: f"go {place}" for place in PLACES}
    messages = (Message(role="user", content=text),)
    return Question(question_id=question_id, messages=messages, answers=answers, documents=documents)


def make_parts(engine, **changes) -> RolloutParts:
    """Rollout parts around an engine. Settings are given by their own names, parts by theirs."""
    names = ("tools", "reward", "chat_format", "allocator", "branch_policy", "scoring")
    parts = {name: changes.pop(name) for name in names if name in changes}
    changes.setdefault("budget", 4)
    changes.setdefault("turn_entropy", TurnEntropy(num_tokens=2, normalizer="none"))
    settings = RolloutSettings(**changes)
    defaults = {
        "tools": ToolRuntime(tools=(DocumentSearch(),)),
        "reward": PaperReward(),
        "chat_format": TagFormat(engine.tokenizer, ("search",)),
        "allocator": RootShare(share=0.5),
        "branch_policy": NeverBranch(),
    }
    return RolloutParts(engine=engine, settings=settings, **(defaults | parts))


def grow(engine, questions=None, seed=0, **changes):
    """Grow trees for `questions` (one question by default) and return them."""
    sampler = RolloutSampler(make_parts(engine, **changes))
    return sampler.rollout([make_question()] if questions is None else questions, seed)


def canonical(tree):
    """What a tree holds, without the order in which chains happened to add segments."""
    leaves = []
    for leaf in tree.leaves:
        path = tree.path(leaf.segment_id)
        steps = tuple((s.source, tuple(s.token_ids), tuple(s.entropies), s.is_branch_point) for s in path)
        leaves.append((leaf.seed_path, leaf.origin, leaf.stop_reason, leaf.num_tool_calls, leaf.reward, steps))
    return leaves, tree.global_budget, tree.branch_budget, sorted(tree.branch_depths), sorted(tree.branch_roots)


def untimed(trees):
    """The trees with what a clock wrote into them, durations of tool calls, set to zero."""
    for segment in (segment for tree in trees for segment in tree.segments):
        if segment.tool_result is not None:
            segment.tool_result = replace(segment.tool_result, duration_s=0.0, queue_s=0.0)
    return trees


class Biased:
    """A tiny policy that always writes a given cycle of tokens: each token's successor has by far the largest logit."""

    def __init__(self, text, policy):
        self._policy = policy
        self.tokenizer, self.config = self._policy.tokenizer, self._policy.config
        self.ids = self.tokenizer.encode(text, add_special_tokens=False)

    def find_weights(self):
        return None

    def build_model(self):
        model = self._policy.build_model()
        # Without attention and MLP the hidden state is the normed embedding: one-hot pairs make a lookup table.
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            model.model.embed_tokens.weight.zero_()
            model.lm_head.weight.zero_()
            for index, token in enumerate(self.ids):
                model.model.embed_tokens.weight[token, index] = 1.0
                model.lm_head.weight[self.ids[(index + 1) % len(self.ids)], index] = 100.0
        return model
