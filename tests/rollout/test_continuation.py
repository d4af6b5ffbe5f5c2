"""A chain that goes on from any place of a tree writes what it wrote, and what was begun is not written twice."""

import asyncio
from dataclasses import replace

import pytest

from aepo_lightning.branching import EntropyBalanced
from aepo_lightning.contracts.generation import FinishReason, Generation, SamplingParams
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.policy.tokenizers import build_byte_tokenizer
from aepo_lightning.rollout import Continuation, GroupRollout
from aepo_lightning.rollout.continuation import BegunTurn, TurnFinisher
from tests.support.builders import ScriptedEngine, Turn, grow, make_parts, make_question, random_script

RULE = EntropyBalanced(gamma=4.0)


def resumed(script):
    """A script that goes on where the words of a turn that are there end."""

    def rest(text, params):
        turn = script(text, params)
        begun = text.rpartition("</result>")[2].rpartition("find e0")[2].strip()
        assert turn.text.startswith(begun)
        return replace(turn, text=turn.text.removeprefix(begun).strip())

    return rest


def grown_on(parts, tree, start):
    group = GroupRollout(start.parts(parts), make_question(), tree.seed)
    return asyncio.run(group.grow_on(start))


def places_of(path):
    """Every place from which a chain can go on, with what lies behind it."""
    for place, segment in enumerate(path):
        if segment.source is SegmentSource.TOOL:
            continue
        for number in range(len(segment.token_ids) if segment.source is SegmentSource.POLICY else 1):
            kept = {name: getattr(segment, name)[:number] for name in ("token_ids", "logprobs", "entropies")}
            is_turn = segment.source is SegmentSource.POLICY
            yield (path[1:place] if is_turn else []), (BegunTurn(**kept) if is_turn and number else None)


@pytest.mark.parametrize("branch_signal", ["after_tool", "prefix"])
def test_every_place_of_every_trajectory_leads_to_its_end(branch_signal):
    settings = {"branch_policy": RULE, "branch_signal": branch_signal, "max_response_tokens": 60}
    script, num_places = random_script(p_cut=0.2), 0
    (tree,) = grow(ScriptedEngine(script), seed=2, **settings)
    parts = make_parts(ScriptedEngine(resumed(script)), **settings)
    for leaf in tree.leaves:
        for segments, begun in list(places_of(tree.path(leaf.segment_id)))[::4]:
            start = Continuation(seed_path=leaf.seed_path, segments=segments, begun=begun)
            found = grown_on(parts, tree, start)
            (end,) = found.leaves
            assert found.token_ids(end.segment_id) == tree.token_ids(leaf.segment_id)
            assert (end.stop_reason, end.reward, end.seed_path) == (leaf.stop_reason, leaf.reward, leaf.seed_path)
            assert end.num_tool_calls == leaf.num_tool_calls
            num_places += 1
    assert num_places > 10
    assert any(len(leaf.seed_path) > 2 for leaf in tree.leaves), "there were branches"


TOKENIZER = build_byte_tokenizer()


class Writer(ScriptedEngine):
    """Writes a text on, byte by byte, until a stop string is complete within what it writes."""

    def __init__(self, text):
        super().__init__(script=lambda *_: Turn(text=text))
        self.ids = TOKENIZER.encode(text, add_special_tokens=False)

    async def generate(self, prompt_ids, params, on_probe=None):
        assert on_probe is None
        self.requests.append((len(prompt_ids), params.max_tokens))
        written, reason = [], FinishReason.LENGTH
        for token in self.ids[len(prompt_ids) :][: params.max_tokens]:
            written.append(token)
            if any(stop in TOKENIZER.decode(written) for stop in params.stop):
                reason = FinishReason.STOP
                break
        numbers = [0.5] * len(written)
        return Generation(token_ids=written, logprobs=numbers, entropies=numbers, finish_reason=reason)


def finished(text, number, max_tokens=60):
    """What comes of a text whose first bytes are there; the prompt is its first one."""
    engine, probes = Writer(text), []
    ids = engine.ids[1:number]
    begun = BegunTurn(token_ids=ids, logprobs=[0.0] * len(ids), entropies=[0.0] * len(ids))
    finisher = TurnFinisher(engine, begun, TOKENIZER.decode)
    params = SamplingParams(max_tokens=max_tokens, stop=("</a>",), num_probe_tokens=2)
    found = asyncio.run(finisher.generate(engine.ids[:1], params, probes.append))
    assert [probe.token_ids for probe in probes] == [found.token_ids[:2]]
    assert len(found.logprobs) == len(found.entropies) == len(found.token_ids)
    return TOKENIZER.decode(found.token_ids), found, engine


@pytest.mark.parametrize("number", range(2, 8))
def test_a_turn_ends_at_its_stop_string_wherever_it_was_begun(number):
    text, found, engine = finished("?go</a> and on", number)
    assert text == "go</a>"
    assert found.finish_reason is FinishReason.STOP
    assert (number == 7) == (not engine.requests), "what is whole is not asked for"


@pytest.mark.parametrize("number", [3, 5])
def test_what_was_begun_counts_against_the_length(number):
    text, found, _ = finished("?go</b> and on", number, max_tokens=8)
    assert text == "go</b> a"
    assert found.finish_reason is FinishReason.LENGTH


def test_nothing_is_written_behind_the_end_of_a_message():
    begun = BegunTurn(token_ids=[40, 2], logprobs=[0.0] * 2, entropies=[0.0] * 2, is_over=True)
    engine = ScriptedEngine(lambda *_: Turn(text="go", ends=True))
    finisher = TurnFinisher(engine, begun, engine.tokenizer.decode)
    found = asyncio.run(finisher.generate([3, 4], SamplingParams(max_tokens=5)))
    assert (found.token_ids, found.finish_reason, engine.requests) == ([40, 2], FinishReason.EOS, [])


def test_only_the_first_turn_is_given_a_beginning():
    begun = BegunTurn(token_ids=[40], logprobs=[0.0], entropies=[0.0])
    engine = ScriptedEngine(lambda *_: Turn(text="go", ends=True))
    finisher = TurnFinisher(engine, begun, engine.tokenizer.decode)
    params = SamplingParams(max_tokens=5)
    lengths = [len(asyncio.run(finisher.generate([3, 4], params)).token_ids) for _ in range(2)]
    assert lengths == [3, 2]
    assert [len(prompt) for prompt, _ in engine.requests] == [3, 2]
