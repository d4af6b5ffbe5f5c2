"""A policy that writes calls in tokens of its own, and its trajectories made again token by token."""

import json
from random import Random

from aepo_lightning.contracts.generation import FinishReason, Generation
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.tools import ToolRuntime
from tests.support.builders import RecordingBranchPolicy, RootChains, ScriptedEngine, grow
from tests.support.tool_parts import CountingTool


class CarelessEngine(ScriptedEngine):
    """Writes calls by chance, in tokens that encoding the text would not give, and remembers every token."""

    def __init__(self, tokenizer, name):
        super().__init__(script=lambda _text, _params: None, max_model_len=3000, tokenizer=tokenizer)
        self.tokenizer = tokenizer
        self.name = name
        self.written = {}

    async def generate(self, prompt_ids, params, on_probe=None):
        random = Random(params.seed)
        text, reason = self._turn(random, len(prompt_ids))
        ids = []
        while text:
            size = random.randint(1, 6)
            ids += self.tokenizer.encode(text[:size], add_special_tokens=False)
            text = text[size:]
        if reason is FinishReason.EOS:
            ids.append(self.tokenizer.eos_token_id)
        if len(ids) > params.max_tokens:
            ids, reason = ids[: params.max_tokens], FinishReason.LENGTH
        numbers = [-random.random() for _ in ids]
        found = Generation(token_ids=ids, logprobs=numbers, entropies=[-n for n in numbers], finish_reason=reason)
        assert self.written.setdefault((tuple(prompt_ids), params.seed), found) is found
        if on_probe is not None:
            on_probe(found)
        return found

    def _turn(self, random, length):
        words = "".join(random.choices(["a", " b", "\n", "é", "> ", "<"], k=5))
        if random.random() < 0.3 or length > 2000:
            return words + " done", FinishReason.EOS
        queries = [f"q{random.randint(0, 9)}" for _ in range(random.randint(1, 3))]
        if self.name == "tags":
            return f"{words}<look_up>{queries[0]}</look_up>", FinishReason.STOP
        calls = [json.dumps({"name": "look_up", "arguments": {"text": query}}) for query in queries]
        return words + "".join(f"<tool_call>{call}</tool_call>" for call in calls), FinishReason.EOS


class AnyReward:
    async def __call__(self, _sample):
        return RewardOutput(reward=0.0, is_correct=False, is_well_formed=True)


def slow_reference(engine, tree, leaf, answers_written):
    """Build a trajectory again token by token from what the engine wrote and what the tools answered."""
    prompt = tree.segments[0].token_ids
    ids, mask, logprobs = list(prompt), [False] * len(prompt), [0.0] * len(prompt)
    segments = tree.path(leaf.segment_id)[1:]
    while segments:
        wrote = segments.pop(0)
        assert wrote.source is SegmentSource.POLICY
        (found,) = [
            each
            for (before, _), each in engine.written.items()
            if before == tuple(ids) and each.token_ids == wrote.token_ids
        ][:1]
        ids += found.token_ids
        mask += [True] * len(found.token_ids)
        logprobs += found.logprobs
        texts = []
        while segments and segments[0].source is SegmentSource.TOOL:
            texts.append(segments.pop(0).tool_result.text)
        written = "".join(answers_written(texts)) if texts else ""
        for token in engine.tokenizer.encode(written, add_special_tokens=False):
            ids.append(token)
            mask.append(False)
            logprobs.append(0.0)
    return ids, mask, logprobs


def careless_tree(tokenizer, name, chat_format, results, seed):
    """Grow a tree of six careless trajectories whose tool answers what is given; return the engine, too."""
    engine = CarelessEngine(tokenizer, name)
    changes = {"budget": 6, "max_response_tokens": 1500, "max_tool_calls": 8, "reward": AnyReward()}
    changes |= {"allocator": RootChains(num_root_chains=3), "branch_policy": RecordingBranchPolicy()}
    tools = ToolRuntime(tools=[CountingTool(name="look_up", script=results)])
    (tree,) = grow(engine, seed=seed, tools=tools, chat_format=chat_format, **changes)
    assert len(tree.leaves) == 6
    assert any(segment.source is SegmentSource.TOOL for segment in tree.segments)
    return engine, tree
