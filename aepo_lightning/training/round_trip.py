r"""A round trip before the first token: what a perfect policy would write goes through all that it will go through.

A trajectory with a call of every tool and the right answer is written, encoded, ended as the engine would end it,
decoded, parsed, checked against the tools' schemas and scored. What does not come back whole is one message with the
cause and the remedy. No tool is called.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from aepo_lightning.chat_formats.template import ChatTemplate
from aepo_lightning.contracts.blame import describe_failure
from aepo_lightning.contracts.chat_format import CallWritingChatFormat, ChatFormat
from aepo_lightning.contracts.generation import FinishReason, StopReason
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.contracts.question import Question, Task
from aepo_lightning.contracts.reward import Reward, RewardInput
from aepo_lightning.contracts.tool import ToolCall, ToolResult, ToolRunner, ToolSpec
from aepo_lightning.distributed.collectives import on_rank_zero
from aepo_lightning.engines.stopping import StopMatcher, TokenPieces
from aepo_lightning.errors import AepoError, ConfigError, boundary
from aepo_lightning.event_loop import run_in_event_loop
from aepo_lightning.policy.end_tokens import eos_token_ids
from aepo_lightning.printable import printable
from aepo_lightning.rollout import RolloutParts
from aepo_lightning.rollout.scoring import ScoringSettings, score
from aepo_lightning.rollout.steps import opening_of
from aepo_lightning.tasks.asked import ask_question
from aepo_lightning.training.synthetic_arguments import synthetic_arguments

T = TypeVar("T")
logger = logging.getLogger(__name__)

_RESULT = 'One line.\nA second one: it\'s "quoted", <b>marked</b> & {"json": [1, 2]}'
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_OFF = "`data.round_trip=false` starts without this check."


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTrip:
    """One trip through the parts of a run.

    Attributes:
        chat_format: Of the run.
        tools: Whose calls are written.
        tokenizer: Of the policy.
        eos_token_ids: Tokens that end a generation.
        question: Any of the run's.
        reward: Scores the answer. None leaves that out.
        scoring: How it is called.
        max_response_tokens: Of the rollouts, which a reward may look at.
    """

    chat_format: ChatFormat
    tools: ToolRunner
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: Sequence[int]
    question: Question
    reward: Reward | None = None
    scoring: ScoringSettings = field(default_factory=ScoringSettings)
    max_response_tokens: int | None = None
    _pieces: TokenPieces = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Prepare to spell tokens."""
        object.__setattr__(self, "_pieces", TokenPieces(self.tokenizer))

    @classmethod
    def of(
        cls, policy: PolicySource, task: Task, chat_format: ChatFormat, tools: ToolRunner, **scored: Any
    ) -> "RoundTrip":
        """Return the trip of a policy with the first question of a task.

        Args:
            policy: Whose tokenizer and end of messages are tried.
            task: Is asked for its first question of training.
            chat_format: Of the run.
            tools: Of the run.
            **scored: `reward`, `scoring` and `max_response_tokens`, where the answer is scored.

        Raises:
            DataError: If the task fails.
        """
        return cls(
            chat_format=chat_format,
            tools=tools,
            tokenizer=policy.tokenizer,
            eos_token_ids=eos_token_ids(policy),
            question=ask_question(task, "train", 0),
            **scored,
        )

    def run(self) -> int:
        """Make the trip; return how many tokens the response had.

        Raises:
            ConfigError: With the cause and the remedy, if anything does not come back whole.
        """
        chat_format = self.chat_format
        _by(
            "`chat_format`", "write the prompt of a question", lambda: chat_format.encode_prompt(self.question.messages)
        )
        self._check_spaces()
        self._check_ends()
        response: list[int] = []
        calls: list[ToolCall] = []
        specs = getattr(self.tools, "specs", ()) if isinstance(chat_format, CallWritingChatFormat) else ()
        before = opening = opening_of(chat_format)
        for spec in specs:
            ids, call = self._call(spec, before)
            result = self._result()
            response += ids + result
            calls.append(call)
            before = chat_format.decode(result)
        response += self._answer(before)
        if self.reward is not None:
            self._score(self.reward, opening + chat_format.decode(response), calls, len(response))
        return len(response)

    def _check_spaces(self) -> None:
        """Check that words which come back alone also come back beside one another."""
        word, written, read = self._word, self.chat_format.encode_text, self.chat_format.decode
        back = read(written(f"{word} {word}")).strip()
        if read(written(word)).strip() == word and back == word + word:
            raise ConfigError(
                f"The tokenizer must keep the spaces between words, but {f'{word} {word}'!r} became {back!r}: "
                f"{type(self.tokenizer).__name__} may not be the class that its tokenizer.json was made by. Load it by "
                f"`PreTrainedTokenizerFast`. {_OFF}"
            )

    def _check_ends(self) -> None:
        """Check that a message of the policy ends where a generation does."""
        if not self.eos_token_ids:
            raise ConfigError(
                "A policy must have a token that ends its messages, but tokenizer and model name none. Set "
                "`tokenizer.eos_token`, or `model.eos_tokens`."
            )
        end = ChatTemplate(self.tokenizer).end_of_message()
        if end.is_marked and end.token_id not in self.eos_token_ids:
            known = [self.tokenizer.convert_ids_to_tokens(token) for token in self.eos_token_ids]
            shown = end.text.strip()[:40]
            raise ConfigError(
                f"The end of a message in the chat template must end a generation, but {shown!r} is not among the "
                f"tokens that do, {known}. "
                + (
                    f"Set `model.eos_tokens=['{shown}']`, or add {end.token_id} to `eos_token_id` in the model's "
                    "generation_config.json."
                    if end.token_id is not None
                    else "No token stands for it: add one to the tokenizer, or use a template that ends with one."
                )
            )

    def _call(self, spec: ToolSpec, before: str) -> tuple[list[int], ToolCall]:
        """Write a call of a tool after what stands before it, and read it back."""
        chat_format = self.chat_format
        assert isinstance(chat_format, CallWritingChatFormat), "the caller has looked"
        arguments = synthetic_arguments(spec, self._word)
        text = f"{self._thought(before)} {chat_format.write_call(spec, arguments)}".lstrip()
        ids, reason = self._end(chat_format.encode_text(text), f"a call of {spec.name!r}")
        back = chat_format.decode(ids)
        found = _by("`chat_format`", "read a call", lambda: chat_format.parse_calls(back, reason))
        call = found[0] if len(found) == 1 else ToolCall(tool="", text="", problem=f"{len(found)} calls were found.")
        if call.problem or call.tool != spec.name or not _same(call, spec, arguments):
            what = call.problem or f"{call.tool}({call.text if call.arguments is None else call.arguments}) was read."
            raise ConfigError(
                f"A call of the tool {spec.name!r} must come back as it was written, but {text[-160:]!r} became "
                f"{back[-160:]!r}: {what} {self._remedy(text, back)}"
            )
        return ids, call

    def _answer(self, before: str) -> list[int]:
        """Write the right answer as the prompt asks for it, and the end of the message."""
        gold = next(iter(self.question.answers), self._word)
        text = f"{self._thought(before)} <answer> \\boxed{{ {gold} }} </answer>".lstrip()
        ids, _ = self._end(self.chat_format.encode_text(text), "an answer", must_end=True)
        back = self.chat_format.decode(ids)
        if lost := [tag for tag in _TAGS if tag in text and tag not in back and self._is_scored_by_form]:
            raise ConfigError(
                f"The tags of an answer must come back from the tokenizer, but {', '.join(lost)} did not. "
                f"{self._remedy(text, back)}"
            )
        return ids

    def _thought(self, before: str) -> str:
        """Return a thought, which goes on from what the template has opened."""
        if "</think>" in before:
            return ""
        return f"{self._word} </think>" if "<think>" in before else f"<think> {self._word} </think>"

    @property
    def _word(self) -> str:
        """A word that the tokenizer can write: those of small vocabularies know few."""
        asked = " ".join(message.content for message in self.question.messages).split()
        for word in ("one", *asked):
            if word.isalnum() and self.chat_format.decode(self.chat_format.encode_text(word)).strip() == word:
                return word
        return next(iter(self.question.answers), "one")

    def _end(self, ids: list[int], what: str, must_end: bool = False) -> tuple[list[int], FinishReason]:
        """Return the tokens up to where the engine would stop, which must be the last."""
        matcher = StopMatcher(self.chat_format.stop)
        for place, token in enumerate(ids):
            is_stop = bool(self.chat_format.stop) and matcher.push(self._pieces[token])
            if token not in self.eos_token_ids and not is_stop:
                continue
            if place + 1 < len(ids) or must_end:
                raise ConfigError(
                    f"The generation of {what} must end with its last token, but ends after {self._pieces[token]!r}: "
                    f"that is {'a stop string' if is_stop else 'a token that ends messages'}. Choose other names."
                )
            return ids, FinishReason.STOP
        end = ChatTemplate(self.tokenizer).end_of_message().token_id
        return [*ids, self.eos_token_ids[0] if end is None else end], FinishReason.EOS

    def _result(self) -> list[int]:
        pieces = _by("`chat_format`", "write a result", lambda: self.chat_format.encode_results([_RESULT]))
        return [token for piece in pieces for token in piece]

    def _remedy(self, text: str, back: str) -> str:
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        hidden = [each for each in special | {*self.tokenizer.all_special_tokens} if each in text and each not in back]
        if hidden:
            return (
                f'{sorted(hidden)} must not be special tokens: mark them `"special": false` in the tokenizer\'s files.'
            )
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in self.chat_format.encode_text(text):
            return f"The tokenizer has no token for part of it. Add the words, or leave the tool out. {_OFF}"
        return f"Use another `chat_format` or tokenizer. {_OFF}"

    @property
    def _is_scored_by_form(self) -> bool:
        return bool(getattr(self.reward, "checks_form", False))

    def _score(self, reward: Reward, text: str, calls: Sequence[ToolCall], num_tokens: int) -> None:
        """Have the right answer scored."""
        results = tuple(ToolResult(text=_RESULT) for _ in calls)
        sample = RewardInput(
            question=self.question, response_text=text, tool_calls=tuple(calls), tool_results=results,
            stop_reason=StopReason.EOS, num_response_tokens=num_tokens, max_response_tokens=self.max_response_tokens,
        )  # fmt: skip
        scored = run_in_event_loop(score(reward, sample, self.scoring))
        if not scored.is_scored or scored.has_failed:
            why = printable(scored.reason) or "it abstains."
            logger.warning("The reward cannot say what a right answer is worth: %s", why)
            return
        if scored.is_correct and scored.is_well_formed:
            return
        said = (
            f"The reward must give a right answer its best, but gives {scored.reward:g} to {text[-200:]!r} for "
            f"question {self.question.question_id!r} with the accepted answers {list(self.question.answers)[:3]}"
            f"{f': {scored.reason}' if scored.reason else '.'}"
        )
        if self._is_scored_by_form:
            raise ConfigError(f"{said} Correct the answers or the chat format. {_OFF}")
        if not any(message.role == "system" for message in self.question.messages):
            logger.warning("%s If it wants answers of another form, say so in a system message of the questions.", said)


def make_round_trip(parts: RolloutParts, policy: PolicySource, task: Task) -> None:
    """Make a round trip with the first question of a task, on rank 0 for all. Collective.

    Args:
        parts: Of the rollouts.
        policy: Whose tokenizer and end of messages are tried.
        task: Of the run.

    Raises:
        ConfigError: With the cause and the remedy, if anything does not come back whole.
        RewardError: If the reward fails.
    """
    on_rank_zero(lambda: _try(parts, policy, task))


def _try(parts: RolloutParts, policy: PolicySource, task: Task) -> None:
    start = perf_counter()
    scored: dict[str, Any] = {"reward": parts.reward, "scoring": parts.scoring}
    scored["max_response_tokens"] = parts.settings.max_response_tokens
    trip = RoundTrip.of(policy, task, parts.chat_format, parts.tools, **scored)
    logger.info("Round trip of a perfect answer: %d tokens, %.2f s.", trip.run(), perf_counter() - start)


def _by(part: str, task: str, work: Callable[[], T]) -> T:
    """Return what a user's part returns; what it raises is named."""
    failures: list[Exception] = []
    with boundary(failures.append):
        return work()
    error = failures[0]
    if isinstance(error, AepoError):
        raise error
    raise ConfigError(
        f"{part} must {task}, but raised {' '.join(describe_failure(error).split())[:300]}. {_OFF}"
    ) from error


def _same(call: ToolCall, spec: ToolSpec, arguments: Mapping[str, Any]) -> bool:
    """Return whether a call has the arguments that were written, as JSON or as bare text."""
    if call.arguments is None:
        written = str(arguments.get(spec.text_parameter, ""))
        return call.text.split() == written.split()
    return dict(call.arguments) == dict(arguments)
