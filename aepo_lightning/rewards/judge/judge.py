"""A language model as an answer checker."""

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from aepo_lightning.contracts.blame import part_name
from aepo_lightning.contracts.checker import AnswerChecker, Claim, Outcome, Verdict
from aepo_lightning.errors import ConfigError
from aepo_lightning.event_loop import Places
from aepo_lightning.printable import printable
from aepo_lightning.rewards.checkers.accepted import NO_ANSWER, NO_GOLD, accepted_answers
from aepo_lightning.rewards.judge.attempts import breaker_of, unless_down, with_attempts
from aepo_lightning.rewards.judge.counts import JudgeCounts, JudgeTally
from aepo_lightning.rewards.judge.endpoint import JudgeEndpoint
from aepo_lightning.rewards.judge.failures import AbstentionKind, JudgeFailure
from aepo_lightning.rewards.judge.prompt import Prompt, judge_prompt
from aepo_lightning.rewards.judge.reply import Judgement, read_judgement
from aepo_lightning.rewards.judge.settings import JudgeLimits, JudgePrices
from aepo_lightning.rewards.judge.store import VerdictStore
from aepo_lightning.rewards.judge.template import JudgeTemplate, Ruling
from aepo_lightning.rewards.judge.templates import TEMPLATES

logger = logging.getLogger(__name__)


class LLMJudge:
    """Has a language model judge answers, through any endpoint with OpenAI's chat protocol.

    Claims of which an answer or an accepted one is missing never reach the model, nor do those that a rule finds
    correct. Verdicts are kept by model, settings of the request and all that it is told: template, question, choices,
    accepted answers and answer. The address does not count. Failures are not kept: the claim is judged at the next
    occasion.
    """

    keeps_deadline: ClassVar[bool] = True

    def __init__(  # noqa: PLR0913 -- every argument is one leaf of the configuration
        self,
        base_url: str,
        model: str,
        *,
        template: str | JudgeTemplate = "paper",
        rule: AnswerChecker | None = None,
        cache_path: str | Path | None = None,
        api_key_env: str | None = None,
        limits: JudgeLimits | None = None,
        prices: JudgePrices | None = None,
        request: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep the settings. Nothing is sent yet.

        Args:
            base_url: Of the API, such as http://127.0.0.1:8000/v1.
            model: Its name there.
            template: What the judge is told: a name from `TEMPLATES`, or one of your own.
            rule: Looks first. What it finds correct counts as correct without the judge.
            cache_path: File of verdicts, on a local disk, shared by all runs of a machine. None keeps them in memory.
            api_key_env: Name of the environment variable with the key; the key itself is kept nowhere.
            limits: How long the judge may take and how much it is given.
            prices: Of its tokens, for the count of the cost.
            request: Further fields of each request, such as `chat_template_kwargs`. None leaves a field out: OpenAI's
                models that reason want `temperature: null, max_tokens: null, max_completion_tokens: 4096`.

        Raises:
            ConfigError: If a setting cannot work, or the `openai` package is not installed.
        """
        self.model = model
        self.template = _template(template)
        self.rule = rule
        self._limits = limits or JudgeLimits()
        self._tally = JudgeTally(prices)
        self._endpoint = JudgeEndpoint(
            base_url,
            model,
            api_key_env=api_key_env,
            request=request or {},
            timeout_s=self._limits.timeout_s,
            max_tokens=self._limits.max_tokens,
            on_request=partial(self._tally.add, "num_calls"),
        )
        self._request = self._endpoint.fields
        self._store = VerdictStore(cache_path)
        self._breaker = breaker_of(self._limits)
        self._places = Places(self._limits.max_concurrent_calls)
        self._flights: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Flight]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        """Return who judges and how, without addresses and keys."""
        return f"LLMJudge({', '.join(f'{name}={value!r}' for name, value in self.identity.items())})"

    @property
    def identity(self) -> dict[str, Any]:
        """What verdicts depend on, as plain values: neither address nor key, neither limits nor store."""
        return {
            "model": self.model,
            "template": self.template.name,
            "template_digest": self.template.digest,
            "request": dict(self._request),
            "rule": _described(self.rule),
        }

    @property
    def counts(self) -> JudgeCounts:
        """What became of the claims so far, and what it cost."""
        return self._tally.counts()

    async def __call__(self, claim: Claim) -> Verdict:
        """Return the verdict on a claim: scored, or abstained with the reason."""
        self._tally.add("num_claims")
        golds = accepted_answers(claim)
        if not golds or not claim.answer.strip():
            self._tally.add("num_without_answer")
            return NO_ANSWER if golds else NO_GOLD
        if self.rule is not None and (found := await self.rule(claim)).is_correct:
            self._tally.add("num_equal_by_rule")
            return found
        try:
            judgement = await self._judged(claim, golds)
        except JudgeFailure as failure:
            return self._abstained(failure.kind, str(failure))
        if judgement.ruling is Ruling.ABSTAIN:
            return self._abstained(AbstentionKind.UNDECIDED, f"abstained: {judgement.reason or 'no reason given'}")
        self._tally.add("num_judged")
        is_correct = judgement.ruling is Ruling.CORRECT
        return Verdict(score=float(is_correct), is_correct=is_correct, reason=judgement.reason)

    async def _judged(self, claim: Claim, golds: Sequence[str]) -> Judgement:
        prompt = judge_prompt(self.template, claim, golds)
        key = self._key(prompt)
        if (known := self._store.get(key)) is not None:
            self._tally.add("num_kept")
            return known
        if prompt.length > self._limits.max_prompt_chars:
            bound = self._limits.max_prompt_chars
            text = f"was not asked: the prompt has {prompt.length} characters, and at most {bound} are sent"
            raise JudgeFailure(AbstentionKind.TOO_LONG, text)
        flights = self._flights.setdefault(asyncio.get_running_loop(), {})
        flight = flights.get(key)
        if flight is None:
            flight = _Flight(task=asyncio.ensure_future(self._ask(key, prompt)))
            flights[key] = flight
        else:
            self._tally.add("num_shared")
        flight.num_waiting += 1
        try:
            landed = await asyncio.shield(flight.task)
        finally:
            flight.num_waiting -= 1
            if not flight.num_waiting:  # cancels nothing that has ended
                flight.task.cancel()
                del flights[key]
        if isinstance(landed, JudgeFailure):
            raise landed
        return landed

    async def _ask(self, key: str, prompt: Prompt) -> Judgement | JudgeFailure:
        """Return the verdict, or why there is none: nobody may wait for it any more when that is known."""
        schema = self.template.schema()

        async def attempt() -> Judgement:
            reply = await self._endpoint.ask(prompt, schema)
            self._tally.spend(reply)
            return read_judgement(reply, self.template)

        ask = partial(with_attempts, attempt, self._limits, f"the judge {self.model}")
        try:
            judgement = await unless_down(ask, self._breaker, self._places.take())
            return await self._store.put(key, self.model, judgement)
        except JudgeFailure as failure:
            return failure

    def _key(self, prompt: Prompt) -> str:
        said = json.dumps((self.model, self.template.digest, self._request, prompt), sort_keys=True, default=str)
        return blake2b(said.encode(), digest_size=20).hexdigest()

    def _abstained(self, kind: AbstentionKind, text: str) -> Verdict:
        reason = f"The judge {self.model} {text.rstrip('.')}."
        if (num := self._tally.abstain(kind)) in (1, 10, 100) or num % 1000 == 0:
            logger.warning("No verdict (%s, claim %d of this kind): %s", kind, num, printable(reason))
        return Verdict(outcome=Outcome.ABSTAINED, reason=f"{kind}: {reason}")


@dataclass(slots=True)
class _Flight:
    """A claim that is before the judge, and those who wait for it."""

    task: "asyncio.Task[Judgement | JudgeFailure]"
    num_waiting: int = 0
    """The last one who leaves ends the request."""


def _described(rule: AnswerChecker | None) -> str | None:
    """Return a rule with its settings, the same in every process."""
    if rule is None:
        return None
    return repr(rule) if is_dataclass(rule) else part_name(rule)


def _template(given: str | JudgeTemplate) -> JudgeTemplate:
    if isinstance(given, JudgeTemplate):
        return given
    if given not in TEMPLATES:
        raise ConfigError(
            f"`template` of a judge must be one of {', '.join(TEMPLATES)} or a `JudgeTemplate`, but got {given!r}."
        )
    return TEMPLATES[given]
