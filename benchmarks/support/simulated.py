"""What stands in for a model where a benchmark measures everything but the model.

ScriptedEngine computes nothing: every turn is known beforehand and is over after a fixed number of ticks, all requests
side by side. BurstEngine is a policy whose uncertainty comes in bursts, as a documented random process.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from aepo_lightning.contracts.generation import FinishReason, Generation, SamplingParams
from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.contracts.reward import RewardInput, RewardOutput
from aepo_lightning.policy.tokenizers import build_word_tokenizer
from aepo_lightning.rollout import derive_seed

NUM_PLACES = 64
_FRAME = ("<think>", "</think>", "<search>", "</search>", "<result>", "</result>", "<answer>", "</answer>", "go")
Probe = Callable[[Generation], None]


def place_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer for tags, one filler word and the places."""
    return build_word_tokenizer((*_FRAME, *(f"e{number}" for number in range(NUM_PLACES))))


def place_question(index: int, result_length: int) -> Question:
    """Return a question whose documents have `result_length` random words each, so that no two results are equal."""
    random = Random(f"simulated/{index}")
    documents = {
        f"e{place}": " ".join(f"e{random.randrange(NUM_PLACES)}" for _ in range(result_length))
        for place in range(NUM_PLACES)
    }
    messages = (Message(role="user", content="go " * 15 + f"e{index % NUM_PLACES}"),)
    return Question(question_id=f"q{index}", messages=messages, answers=("e0",), documents=documents)


async def no_reward(sample: RewardInput) -> RewardOutput:
    """Score nothing."""
    del sample
    return RewardOutput(reward=0.0, is_correct=False, is_well_formed=True)


@dataclass(eq=False)
class ScriptedEngine:
    """Calls a tool a fixed number of times, then answers; the entropies of a turn are drawn from its seed."""

    tokenizer: PreTrainedTokenizerBase
    num_calls: int
    turn_length: int
    num_ticks: int = 8
    """Turns of the event loop that a generation takes; the probe comes half-way."""
    max_model_len: int = 1 << 20
    num_generations: int = 0
    num_running: int = 0
    most_running: int = 0
    _wheel: dict[int, list[Callable[[], None]]] = field(default_factory=lambda: defaultdict(list))
    _tick: int = 0
    _task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        """Write the turns once."""
        encode = self.tokenizer.encode
        self._result_id = encode("</result>", add_special_tokens=False)[0]
        calls = (f"<search> e{place} </search>" for place in range(NUM_PLACES))
        self._calls = [encode("go " * (self.turn_length - 3) + call, add_special_tokens=False) for call in calls]
        answer = "go " * (self.turn_length - 4) + "<answer> e0 </answer>"
        self._answer = [*encode(answer, add_special_tokens=False), self.tokenizer.eos_token_id]

    async def generate(
        self, prompt_ids: list[int], params: SamplingParams, on_probe: Probe | None = None
    ) -> Generation:
        """Return the scripted turn after `num_ticks` ticks."""
        generation = self._turn(prompt_ids, params)
        future: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        self.num_generations += 1
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        if on_probe is not None:
            self._wheel[self._tick + self.num_ticks // 2].append(lambda: on_probe(generation))
        self._wheel[self._tick + self.num_ticks].append(lambda: self._finish(future, generation))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run_wheel())
        return await future

    def _turn(self, prompt_ids: list[int], params: SamplingParams) -> Generation:
        is_last = prompt_ids.count(self._result_id) >= self.num_calls
        token_ids = self._answer if is_last else self._calls[params.seed % NUM_PLACES]
        entropy = (params.seed >> 8) % 1000 / 1000
        return Generation(
            token_ids=token_ids[:],
            # New objects, as those of a real engine are: shared ones would hide the memory that a tree takes.
            logprobs=[-entropy - 0.001 * position for position in range(len(token_ids))],
            entropies=[entropy + 0.001 * position for position in range(len(token_ids))],
            finish_reason=FinishReason.EOS if is_last else FinishReason.STOP,
        )

    def _finish(self, future: asyncio.Future[Generation], generation: Generation) -> None:
        self.num_running -= 1
        if not future.done():
            future.set_result(generation)

    async def _run_wheel(self) -> None:
        while self._wheel:
            await asyncio.sleep(0)
            for event in self._wheel.pop(self._tick, ()):
                event()
            self._tick += 1

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """There are none."""

    def sleep(self) -> None:
        """Nothing to free."""

    def close(self) -> None:
        """Nothing to free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BurstProcess:
    """How certain a simulated policy is, turn by turn, and what it then does.

    A chain is calm or in a burst. After each tool result it goes from calm to burst with probability `p_enter` and
    stays in a burst with probability `p_stay`, so bursts last 1 / (1 - p_stay) turns on average; it starts calm. In a
    turn it takes one of `num_options` actions. Calm, it takes the question's usual action with probability `p_usual`
    and else any action; in a burst, any action, each as likely. The state is written into the turn, so a branch
    inherits the state of its trunk and then goes its own way.
    """

    p_enter: float = 0.2
    p_stay: float = 0.8
    num_options: int = 8
    p_usual: float = 0.95
    calm_entropy: float = 0.02
    """Mean turn entropy over the entropy of a uniform choice from the vocabulary, as the branch rules see it."""
    burst_entropy: float = 0.08
    noise: float = 0.01
    """Standard deviation of the turn entropy around its mean."""
    num_calls: int = 8
    p_usual_is_right: float = 0.7
    """Share of turns whose right action is the usual one; else it is any action."""

    def action(self, question: str, turn: int, kind: str) -> int:
        """Return the `usual` or the `right` action of a question at a turn."""
        usual = derive_seed("usual", question, turn) % self.num_options
        random = Random(derive_seed("right", question, turn))
        if kind == "usual" or random.random() < self.p_usual_is_right:
            return usual
        return random.randrange(self.num_options)

    def reward(self, question: str, actions: tuple[int, ...]) -> float:
        """Return the share of turns with the right action."""
        return sum(a == self.action(question, turn, "right") for turn, a in enumerate(actions)) / self.num_calls


@dataclass(eq=False)
class BurstEngine:
    """Samples from a `BurstProcess`. A turn is 20 tokens: filler, and a call that names question, state and action."""

    process: BurstProcess
    num_questions: int
    max_model_len: int = 1 << 20
    turn_length: int = 20

    def __post_init__(self) -> None:
        """Build the vocabulary."""
        questions = (f"q{number}" for number in range(self.num_questions))
        actions = (f"a{number}" for number in range(self.process.num_options))
        self.tokenizer = build_word_tokenizer((*_FRAME, "calm", "burst", *questions, *actions))
        self._ids = self.tokenizer.get_vocab()

    def question(self, index: int) -> Question:
        """Return question `index`; whatever is searched for, the tool has nothing to say."""
        return Question(question_id=f"q{index}", messages=(Message(role="user", content=f"q{index}"),), answers=("go",))

    async def generate(
        self, prompt_ids: list[int], params: SamplingParams, on_probe: Probe | None = None
    ) -> Generation:
        """Draw the state from that of the turn before, the action from the state, the entropies from both."""
        random, process, ids = Random(params.seed), self.process, self._ids
        turn = prompt_ids.count(ids["</result>"])
        states = [token for token in prompt_ids if token in (ids["calm"], ids["burst"])]
        was_burst = bool(states) and states[-1] == ids["burst"]
        is_burst = turn > 0 and random.random() < (process.p_stay if was_burst else process.p_enter)
        question = str(self.tokenizer.decode(prompt_ids[:1]))
        is_free = is_burst or random.random() >= process.p_usual
        action = random.randrange(process.num_options) if is_free else process.action(question, turn, "usual")
        mean = process.burst_entropy if is_burst else process.calm_entropy
        entropy = max(0.0, random.gauss(mean, process.noise)) * math.log(len(self.tokenizer))
        is_last = turn >= process.num_calls
        text = "<answer> go </answer>" if is_last else f"<search> {'burst' if is_burst else 'calm'} a{action} </search>"
        body = self.tokenizer.encode(text, add_special_tokens=False)
        tokens = [ids["go"]] * (self.turn_length - len(body) - is_last) + body + [ids["<eos>"]] * is_last
        generation = Generation(
            token_ids=tokens,
            logprobs=[-entropy] * len(tokens),
            entropies=[entropy] * len(tokens),
            finish_reason=FinishReason.EOS if is_last else FinishReason.STOP,
        )
        await asyncio.sleep(0)
        if on_probe is not None:
            on_probe(generation)
        await asyncio.sleep(0)
        return generation

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """There are none."""

    def sleep(self) -> None:
        """Nothing to free."""

    def close(self) -> None:
        """Nothing to free."""


@dataclass(frozen=True, slots=True)
class BurstReward:
    """Scores a trajectory of a `BurstProcess` by its actions."""

    process: BurstProcess

    async def __call__(self, sample: RewardInput) -> RewardOutput:
        """Return the share of right actions."""
        actions = tuple(int(call.text.split()[-1][1:]) for call in sample.tool_calls)
        reward = self.process.reward(sample.question.question_id, actions)
        return RewardOutput(reward=reward, is_correct=reward == 1.0, is_well_formed=True)
