"""Answers are judged while others grow; what was cut off goes on; nothing is made twice."""

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from aepo_lightning.contracts.checker import Outcome, Verdict
from aepo_lightning.contracts.generation import WeightsStamp
from aepo_lightning.errors import EngineError
from aepo_lightning.evaluation.judging import CheckedAnswers, RewardedAnswers, Unjudged
from aepo_lightning.evaluation.results_file import ResultsFile, read_results
from aepo_lightning.evaluation.runner import EvaluationRun, Portion
from aepo_lightning.rollout import RolloutJournal, RolloutSampler
from tests.support.builders import (
    ANSWER,
    ScriptedEngine,
    Turn,
    calls_then_answer,
    make_parts,
    make_question,
    random_script,
)
from tests.support.evaluated import make_stamp

QUESTIONS = [make_question(f"q{number}", f"find e{number}") for number in range(4)]


@dataclass
class Recorder:
    """A checker that remembers claims and may wait for a signal before it answers."""

    gate: asyncio.Event | None = None
    claims: list = field(default_factory=list)

    async def __call__(self, claim):
        self.claims.append(claim)
        if self.gate is not None:
            await self.gate.wait()
        is_correct = claim.answer == "e2"
        return Verdict(score=float(is_correct), is_correct=is_correct)


def read_boxed(text):
    _, found, rest = text.rpartition("\\boxed{")
    return rest.partition("}")[0].strip() if found else ""


class MortalEngine(ScriptedEngine):
    """Counts generations that are over, and fails after some."""

    num_left, num_finished = 1000, 0

    async def generate(self, *arguments):
        self.num_left -= 1
        if self.num_left < 0:
            raise EngineError("the engine is gone")
        generation = await super().generate(*arguments)
        self.num_finished += 1
        return generation


def make_run(engine, checker, folder=None, results=None, num_samples=2, **options):
    parts = make_parts(engine, reward=Unjudged()).for_evaluation(num_samples)
    journal = None if folder is None else RolloutJournal(folder / "rollouts")
    judge = CheckedAnswers(
        benchmark="riddles", chat_format=parts.chat_format, read_answer=read_boxed, checker=checker, **options
    )
    return EvaluationRun(
        sampler=RolloutSampler(parts, 8, journal),
        judge=judge,
        seed=3,
        weights=WeightsStamp(version=0, digest="w"),
        results=results,
    )


def ask(run, questions=QUESTIONS):
    return run.run([Portion(name="riddles", questions=questions)])


def test_every_sample_of_every_question_is_judged_once_with_what_it_took():
    checker = Recorder()
    trees, results = ask(make_run(ScriptedEngine(calls_then_answer(1)), checker, further={"other": Recorder()}))
    assert [tree.question.question_id for tree in trees] == ["q0", "q1", "q2", "q3"]
    assert sorted(each.pair for each in results) == [(f"q{n}", i) for n in range(4) for i in range(2)]
    (one,) = (each for each in results if each.pair == ("q1", 1))
    assert (one.question, one.golds, one.answer, one.verdict.is_correct) == ("find e1", ("e2",), "e2", True)
    assert one.response_text.endswith(ANSWER)
    assert (one.num_calls, one.num_failed_calls, one.scores) == ({"search": 1}, {}, {"other": 1.0})
    path = trees[1].path(trees[1].leaves[1].segment_id)
    assert one.num_generated_tokens == len(path[1].token_ids) + len(path[3].token_ids)
    assert (one.num_result_tokens, one.seed) == (len(path[2].token_ids), 3)
    assert {claim.question_id for claim in checker.claims} == {"q0", "q1", "q2", "q3"}


def test_a_judge_that_waits_holds_up_no_generation():
    async def work():
        checker = Recorder(gate=asyncio.Event())
        grown = []

        def on_tree(tree):
            grown.append(tree)
            if len(grown) == len(QUESTIONS):  # all of them grow before the first is judged
                checker.gate.set()

        run = make_run(ScriptedEngine(calls_then_answer(0)), checker)
        run.sampler._max_concurrent_questions = 1
        return await run.run_async([Portion(name="riddles", questions=QUESTIONS)], on_tree)

    _, results = asyncio.run(asyncio.wait_for(work(), 60))
    assert len(results) == 8


@pytest.mark.parametrize("number", [9, 15])
def test_what_was_cut_off_goes_on_and_nothing_is_made_twice(number, tmp_path):
    script, stamp = random_script(), make_stamp(num_samples=2, seed=3)
    whole = ask(make_run(ScriptedEngine(script), Recorder()))[1]
    dying = MortalEngine(script)
    dying.num_left = number
    with ResultsFile(tmp_path / "r.jsonl", stamp) as results, pytest.raises(EngineError, match="is gone"):
        ask(make_run(dying, Recorder(), tmp_path, results))
    engine, checker = MortalEngine(script), Recorder()
    known = len(read_results(tmp_path / "r.jsonl").results)
    with ResultsFile(tmp_path / "r.jsonl", stamp) as results:
        ask(make_run(engine, checker, tmp_path, results))
    found = read_results(tmp_path / "r.jsonl").results
    assert sorted(found, key=lambda each: each.pair) == sorted(whole, key=lambda each: each.pair)
    assert len(checker.claims) == len(whole) - known
    again = MortalEngine(script)
    ask(make_run(again, Recorder(), tmp_path / "anew"))
    assert engine.num_finished + dying.num_finished == again.num_finished, "what was over is not made again"
    assert dying.num_finished > 0


def test_what_was_generated_and_not_judged_is_judged_without_generating(tmp_path):
    script, stamp = random_script(), make_stamp(num_samples=2, seed=3)
    whole = ask(make_run(MortalEngine(script), Recorder(), tmp_path))[1]
    engine, checker = MortalEngine(script), Recorder()
    with ResultsFile(tmp_path / "r.jsonl", stamp) as results:
        ask(make_run(engine, checker, tmp_path, results))
    found = read_results(tmp_path / "r.jsonl").results
    assert sorted(found, key=lambda each: each.pair) == sorted(whole, key=lambda each: each.pair)
    assert (engine.requests, len(checker.claims)) == ([], len(whole))


def test_trees_are_emptied_when_they_are_judged_where_the_journal_has_them(tmp_path):
    run = make_run(ScriptedEngine(calls_then_answer(1)), Recorder(), tmp_path)
    object.__setattr__(run, "keeps_tokens", False)
    trees, results = ask(run)
    assert all(not segment.token_ids for tree in trees for segment in tree.segments)
    assert all(each.response_text and each.num_generated_tokens for each in results)
    kept = list(RolloutJournal(tmp_path / "rollouts").read("riddles"))
    assert all(segment.token_ids for tree in kept for segment in tree.segments)


def test_a_checker_that_fails_against_its_contract_is_named_and_scores_nothing():
    async def broken(claim):
        raise ZeroDivisionError(claim.answer)

    _, results = ask(make_run(ScriptedEngine(calls_then_answer(0)), broken), QUESTIONS[:1])
    assert [each.verdict.outcome for each in results] == [Outcome.UNSCORED] * 2
    assert "broken` must not fail, but raised ZeroDivisionError: e2" in results[0].verdict.reason


def test_a_reward_of_training_becomes_a_verdict():
    parts = make_parts(ScriptedEngine(calls_then_answer(0)))
    trees = RolloutSampler(parts.for_evaluation(1)).rollout(QUESTIONS[:1], seed=0)
    judge = RewardedAnswers(benchmark="held_out", chat_format=parts.chat_format)
    (tree,) = trees
    found = asyncio.run(judge(tree, tree.leaves[0]))
    reward = tree.leaves[0].reward
    assert found.verdict == Verdict(score=1.0, is_correct=True, reason=reward.reason)
    assert found.scores == {"reward": reward.reward, "f1": 1.0, "is_well_formed": 1.0}
    tree.leaves[0].reward = replace(reward, terms={"length": -0.5})
    assert asyncio.run(judge(tree, tree.leaves[0])).scores == found.scores | {"reward_length": -0.5}
    tree.leaves[0].reward = None
    assert asyncio.run(judge(tree, tree.leaves[0])).verdict.outcome is Outcome.UNSCORED


def test_what_is_empty_has_an_empty_answer():
    engine = ScriptedEngine(lambda *_: Turn(text="go", ends=True))
    _, results = ask(make_run(engine, Recorder()), QUESTIONS[:1])
    assert {each.answer for each in results} == {""}
