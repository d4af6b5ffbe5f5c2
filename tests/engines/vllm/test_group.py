"""The lockstep of a tensor-parallel group, with a stepper that needs no model, and ranks that are threads."""

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.engines.vllm.group import Lockstep, StepNews, Stepper
from aepo_lightning.errors import EngineError

PARAMS = SamplingParams(max_tokens=3)
TIMEOUT_S = 10


@dataclass
class Counting:
    """A stepper that ends each request after `max_tokens` steps and writes down what it was asked for."""

    breaks_at: int = 0
    log: list = field(default_factory=list)
    left: dict = field(default_factory=dict)
    num_steps: int = 0

    def add(self, name, prompt_ids, params):
        self.log.append(("add", name, tuple(prompt_ids)))
        self.left[name] = params.max_tokens

    def abort(self, name):
        self.log.append(("abort", name))
        self.left.pop(name, None)

    def step(self):
        self.num_steps += 1
        if self.num_steps == self.breaks_at:
            raise EngineError("out of memory.")
        outputs = [SimpleNamespace(request_id=name, num_left=left - 1) for name, left in self.left.items()]
        self.left = {output.request_id: output.num_left for output in outputs if output.num_left}
        self.log.append(("step", tuple(output.request_id for output in outputs)))
        return outputs

    def num_unfinished(self):
        return len(self.left)


class Meeting:
    """An exchange among threads."""

    def __init__(self, world):
        self._barrier = threading.Barrier(world, timeout=TIMEOUT_S)
        self._news = [None] * world

    def of(self, rank):
        def exchange(own):
            self._barrier.wait()
            self._news[rank] = own
            self._barrier.wait()
            return list(self._news)

        return exchange


def run(*jobs, breaks_at=()):
    """Run one job per rank, each with its lockstep, and return what they returned or raised, and their steppers."""
    meeting, steppers = Meeting(len(jobs)), [Counting() for _ in jobs]
    for rank, number in dict(breaks_at).items():
        steppers[rank].breaks_at = number
    found = [None] * len(jobs)

    def work(rank):
        try:
            found[rank] = jobs[rank](Lockstep(steppers[rank], meeting.of(rank)))
        except EngineError as error:
            found[rank] = error

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * TIMEOUT_S)
        assert not thread.is_alive(), "a rank hangs"
    return found, steppers


def generate(names, then_settle=True):
    """Return a job that asks for its requests one after the other, then serves the others."""

    def job(lockstep):
        own = []
        for name in names:
            lockstep.add(name, [1, 2], PARAMS)
            is_done = False
            while not is_done:
                outputs = [output for output in lockstep.step() if output.request_id == name]
                own += [output.request_id for output in outputs]
                is_done = any(output.num_left == 0 for output in outputs)
        if then_settle:
            lockstep.settle()
        return own, lockstep.is_serving

    return job


def test_a_stepper_and_its_lockstep_are_steppers():
    assert isinstance(Counting(), Stepper)
    assert isinstance(Lockstep(Counting(), lambda own: [own]), Stepper)


def test_all_ranks_do_the_same_and_each_gets_its_own():
    found, steppers = run(generate(["0:a", "0:b", "0:c"]), generate(["1:a"]), generate([]))
    assert found == [(["0:a"] * 3 + ["0:b"] * 3 + ["0:c"] * 3, False), (["1:a"] * 3, False), ([], False)]
    assert steppers[0].log == steppers[1].log == steppers[2].log
    # What is new at the same exchange comes in rank order.
    assert steppers[0].log[:3] == [("add", "0:a", (1, 2)), ("add", "1:a", (1, 2)), ("step", ("0:a", "1:a"))]


def test_no_step_is_taken_while_nobody_has_requests():
    def idle(lockstep):
        return [lockstep.step() for _ in range(5)], lockstep.is_idle

    found, steppers = run(idle, idle)
    assert found == [([[]] * 5, True)] * 2
    assert steppers[0].num_steps == 0


def test_an_abort_reaches_all_ranks_and_one_before_the_exchange_reaches_none():
    def aborting(lockstep):
        lockstep.add("0:a", [1], PARAMS)
        lockstep.add("0:b", [1], PARAMS)
        lockstep.abort("0:b")
        assert lockstep.num_unfinished() == 1
        lockstep.step()
        lockstep.abort("0:a")
        lockstep.settle()
        return lockstep.num_unfinished()

    found, steppers = run(aborting, generate([]))
    assert found[0] == 0
    assert steppers[1].log == [("add", "0:a", (1,)), ("step", ("0:a",)), ("abort", "0:a")]


def test_ranks_may_settle_again_and_go_on():
    def job(lockstep):
        for rollout in range(3):
            lockstep.settle()
            generate([f"0:{rollout}"])(lockstep)
        return lockstep.is_idle

    found, steppers = run(job, job)
    assert found == [True, True]
    assert steppers[0].log == steppers[1].log


@pytest.mark.parametrize("is_settling", [True, False], ids=["others_settle", "others_generate"])
def test_a_rank_that_fails_in_a_step_makes_all_raise(is_settling):
    other = generate([]) if is_settling else generate(["1:a", "1:b"])
    (own, others), _ = run(generate(["0:a"]), other, breaks_at={0: 2})
    assert str(own) == "out of memory."
    with pytest.raises(EngineError, match=r"Another rank .* failed; rank 0 of the group: out of memory\."):
        raise others


def test_a_group_that_failed_stays_failed():
    def job(lockstep):
        with pytest.raises(EngineError, match="out of memory"):
            generate(["0:a"])(lockstep)
        for again in (lambda: lockstep.add("0:b", [1], PARAMS), lockstep.step, lockstep.settle):
            with pytest.raises(EngineError, match="out of memory"):
                again()
        return lockstep.is_serving

    found, _ = run(job, generate([]), breaks_at={0: 1})
    assert found[0] is False


def test_closing_in_the_middle_tells_the_others():
    def leave(lockstep):
        lockstep.add("0:a", [1], PARAMS)
        lockstep.step()
        lockstep.close()

    found, _ = run(leave, generate(["1:a"]))
    with pytest.raises(EngineError, match="rank 0 of the group: its engine was closed before `sleep`"):
        raise found[1]


def test_closing_after_all_have_settled_needs_nobody():
    def exchange(own):
        assert own == StepNews(has_arrived=True)
        return [own]

    lockstep = Lockstep(Counting(), exchange)
    lockstep.settle()
    lockstep.close()


def test_a_lost_group_says_where_to_look():
    def exchange(_):
        raise RuntimeError("connection closed by peer")

    with pytest.raises(EngineError, match=r"lost a rank, or one was silent for 600 s: .*closed by peer.*first error"):
        Lockstep(Counting(), exchange).step()
