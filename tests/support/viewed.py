"""Trees to look at: hostile ones, many of them, and the page of some."""

import base64
import gzip
import json
import re
from dataclasses import replace
from random import Random

from aepo_lightning.app.view.decisions import Explainer
from aepo_lightning.app.view.folder import OpenedFolder
from aepo_lightning.app.view.token_text import TokenTexts
from aepo_lightning.branching import EntropyBalanced
from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import Message, Question, SegmentSource
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.contracts.tool import ToolCall, ToolResult, ToolStatus
from aepo_lightning.contracts.tree import BranchDecision, Leaf, LeafOrigin, RolloutTree
from aepo_lightning.policy.tokenizers import build_byte_tokenizer
from aepo_lightning.rollout import decision_uniform

HOSTILE = {
    "script": "</script><script>document.hacked = true</script>",
    "image": "<img src=x onerror=\"document.hacked = true\"><svg onload='document.hacked = true'>",
    "markup": "<!-- <b <i></textarea></title></style>]]>&amp;&#x3c;script>",
    "quotes": "'\"`${document.hacked = true}\\u003cscript\\x3e\\",
    "separators": "a\u2028b\u2029c",
    "directions": "user\u202e\u2066 nimda \u2069\u2066toor\u2069 \u200f\u200eend",
    "unseen": "seen\u00ad\u200b\u3164" + "".join(chr(0xE0000 + ord(letter)) for letter in "delete it"),
    "controls": "".join(map(chr, range(32))) + "\x7f\x85\x1b[31mred\x1b[0m",
    "surrogates": "half \ud800 and \udfff",
    "scripts": "e\u0301 \U0001f600 \u0645\u0631\u062d\u0628\u0627 \u4e2d\u6587",
    "proto": "__proto__",
}
RULE = EntropyBalanced(gamma=4.0, penalty_per_step=0.25)


def opened(path, tokenizer=None, rule=RULE, algorithm=None):
    """A folder whose trees are made by the test."""
    return OpenedFolder(
        path=path,
        texts=TokenTexts(tokenizer or build_byte_tokenizer()),
        explainer=Explainer(rule=rule, absence="There is no rule."),
        verdicts={},
        algorithm=algorithm,
        max_response_tokens=None,
        absences={"gap": "not on record", "ratio": "not on record", "clip": "not on record"},
    )


def hostile_tree(name, text, tokenizer):
    """A tree in which everything that a model, a tool or a data set can write is this text."""
    ids = tokenizer.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False)
    question = Question(
        question_id=name + text[:50].encode("utf-8", "replace").decode(),  # seeds derive from it
        messages=(Message(role=text[:50], content=text),),
        answers=(text,),
        metadata={text[:50]: text},
    )
    tree = RolloutTree(question=question, temperature=1.0, seed=1, global_budget=1, branch_budget=1)
    prompt = tree.add(None, SegmentSource.PROMPT, ids)
    numbers = {"logprobs": [-0.5] * len(ids), "entropies": [0.3] * len(ids)}
    turn = tree.add(prompt.segment_id, SegmentSource.POLICY, ids, span_s=(0.0, 0.5), **numbers)
    call = ToolCall(tool=text[:50], text=text, problem=text[:50], arguments={text[:50]: text})
    result = ToolResult(text=text, status=ToolStatus.ERROR, duration_s=0.25, queue_s=0.1)
    tool = tree.add(turn.segment_id, SegmentSource.TOOL, ids, span_s=(0.5, 0.9), tool_call=call, tool_result=result)
    tool.is_branch_point = True
    reward = RewardOutput(
        reward=1.0, is_correct=True, is_well_formed=True, answer=text, reason=text, terms={"part": 0.5}
    )
    for number, path in enumerate([("r", 0), ("r", 0, "b", 1, 0)]):
        end = tree.add(
            tool.segment_id,
            SegmentSource.POLICY,
            [*ids, number + 70],
            span_s=(0.9, 1.0),
            **{field: [*values, 0.0] for field, values in numbers.items()},
        )
        leaf = Leaf(
            segment_id=end.segment_id,
            origin=LeafOrigin.BRANCH if number else LeafOrigin.ROOT,
            stop_reason=StopReason.EOS,
            seed_path=path,
            num_tool_calls=1,
            reward=replace(reward, reward=float(1 - number)),
        )
        tree.leaves.append(leaf)
    tree.decisions.append(decision(tree, ("r", 0), 1, 0.5, 0.1, 0, problem=text))
    return tree


def decision(tree, path, turn, entropy, initial_entropy, consecutive, rule=RULE, **fields):
    """What the rule decides at a place."""
    uniform = decision_uniform(tree.seed, tree.question.question_id, path, turn)
    score = (rule.alpha + rule.gamma * (entropy - initial_entropy)) * (1 - rule.penalty_per_step * consecutive)
    wanted = int(uniform < score)
    return BranchDecision(
        seed_path=path,
        root=path[1],
        turn=turn,
        entropy=entropy,
        initial_entropy=initial_entropy,
        consecutive_branches=consecutive,
        num_wanted=wanted,
        num_opened=wanted,
        score_shift=score - rule.alpha,
        penalty_per_step=rule.penalty_per_step,
        **fields,
    )


def large_tree(number, tokenizer, num_leaves=16, num_turns=3, num_tokens=40):
    """A tree like those of a run: half of its trajectories start at the root, the others at results on their way."""
    random = Random(number)
    question = Question(
        question_id=f"q{number}", messages=(Message(role="user", content=f"question {number}"),), answers=("x",)
    )
    tree = RolloutTree(question=question, seed=number, global_budget=num_leaves // 2, branch_budget=num_leaves // 2)
    root = tree.add(None, SegmentSource.PROMPT, tokenizer.encode(f"question {number}", add_special_tokens=False))
    for index in range(num_leaves // 2):
        path = ("r", index)
        results = _grow(tree, root.segment_id, path, num_turns, num_tokens, random, tokenizer)
        turn = random.randrange(1, num_turns)
        tree.decisions.append(decision(tree, path, turn, random.random(), 0.3, 0))
        results[turn - 1].is_branch_point = True
        branch = (*path, "b", turn, 0)
        _grow(tree, results[turn - 1].segment_id, branch, num_turns - turn, num_tokens, random, tokenizer)
    return tree


def _grow(tree, parent, path, num_turns, num_tokens, random, tokenizer):
    results = []
    for turn in range(num_turns):
        ids = [random.randrange(2, 200) for _ in range(num_tokens)]
        numbers = [round(random.expovariate(2.0), 7) for _ in ids]
        parent = tree.add(
            parent, SegmentSource.POLICY, ids, logprobs=[-each for each in numbers], entropies=numbers
        ).segment_id
        if turn < num_turns - 1:
            text = f"a result of {random.randrange(10**6)} for you"
            ids = tokenizer.encode(text, add_special_tokens=False)
            call = ToolCall(tool="search", text=str(random.random()))
            segment = tree.add(parent, SegmentSource.TOOL, ids, tool_call=call, tool_result=ToolResult(text=text))
            parent = segment.segment_id
            results.append(segment)
    reward = float(random.random() < 0.5)
    tree.leaves.append(
        Leaf(
            segment_id=parent,
            origin=LeafOrigin.BRANCH if len(path) > 2 else LeafOrigin.ROOT,
            stop_reason=StopReason.EOS,
            seed_path=path,
            num_tool_calls=num_turns - 1,
            reward=RewardOutput(reward=reward, is_correct=bool(reward), is_well_formed=True, answer=str(reward)),
        )
    )
    return results


def data_of(page):
    """What a page holds, unpacked by name."""
    found = re.findall(r'<script type="text/plain" id="data-([a-z0-9-]+)">([A-Za-z0-9+/=]*)</script>', page)
    return {name: json.loads(gzip.decompress(base64.b64decode(text))) for name, text in found}
