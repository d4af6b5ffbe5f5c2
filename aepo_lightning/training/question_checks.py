"""What is wrong with questions: before the first rollout, where a task knows them all, or if none has a response."""

import logging
from dataclasses import replace
from typing import Literal, get_args

from lightning.pytorch.utilities import rank_zero_only

from aepo_lightning.advantages import OverlongPenalty
from aepo_lightning.contracts.chat_format import ChatFormat
from aepo_lightning.contracts.question import Objection, Question, StoredTask, Task
from aepo_lightning.contracts.reward import ChecksGolds
from aepo_lightning.errors import ConfigError

logger = logging.getLogger(__name__)

OnLongPrompt = Literal["drop", "error"]


def check_golds(task: Task, reward: object) -> None:
    """Have each accepted answer of a task scored as if the policy had given it, where task and reward can do that.

    Args:
        task: Decides by `on_bad_gold` what happens to answers that would not earn the full reward.
        reward: That of the run.

    Raises:
        DataError: If there are such answers and the task refuses them.
    """
    if not (isinstance(task, StoredTask) and isinstance(reward, ChecksGolds)):
        return

    def look(question: Question) -> Objection | None:
        problems = {answer: reward.gold_problem(question, answer) for answer in question.answers}
        bad = next((answer for answer, problem in problems.items() if problem), None)
        if bad is None:
            return None
        rest = tuple(answer for answer in question.answers if not problems[answer])
        return Objection(
            problem=(
                f"an answer must earn the full reward, but got {bad!r:.80}: {problems[bad]} Correct it, or set "
                "`on_bad_gold` of the task to drop or keep."
            ),
            rest=replace(question, answers=rest) if rest else None,
        )

    task.sieve(look, "num_unpayable", task.on_bad_gold)


def check_lengths(task: Task, chat_format: ChatFormat, max_prompt_tokens: int | None, action: OnLongPrompt) -> None:
    """Find prompts that are too long, and drop or refuse them.

    Args:
        task: Where questions come from.
        chat_format: Writes the prompts.
        max_prompt_tokens: Most tokens of a prompt. None takes any.
        action: `drop` leaves longer ones out and counts them, `error` refuses them with file and place.

    Raises:
        ConfigError: If the number or the word has no meaning, or the task does not know all of its questions.
        DataError: If prompts are too long and `action` is `error`, or none is left.
    """
    if action not in get_args(OnLongPrompt):
        raise ConfigError(f"`on_long_prompt` must be 'drop' or 'error', but got {action!r}.")
    if max_prompt_tokens is None:
        return
    if max_prompt_tokens < 1:
        raise ConfigError(
            f"`max_prompt_tokens` must be at least 1, but got {max_prompt_tokens}. Use null for no limit."
        )
    if not isinstance(task, StoredTask):
        raise ConfigError(
            f"`max_prompt_tokens` must be null for a task that draws its questions, but got {max_prompt_tokens} for "
            f"{type(task).__name__}. Set the size of its questions."
        )

    def look(question: Question) -> Objection | None:
        length = len(chat_format.encode_prompt(question.messages))
        if length <= max_prompt_tokens:
            return None
        rule = f"the prompt must have at most {max_prompt_tokens} tokens (`max_prompt_tokens`), but has {length}."
        return Objection(problem=f"{rule} Shorten it, or set `on_long_prompt=drop`.")

    task.sieve(look, "num_long", action)


@rank_zero_only
def announce(task: Task) -> None:
    """Say in one line a file what was read, kept and dropped; as a warning if anything was dropped."""
    if not isinstance(task, StoredTask):
        return
    for line in task.summary():
        logger.log(logging.INFO if line.endswith("none dropped.") else logging.WARNING, "%s", line)


def look_through(
    task: Task, chat_format: ChatFormat, max_prompt_tokens: int | None, on_long_prompt: OnLongPrompt
) -> None:
    """Check the lengths of all prompts (`check_lengths`), then say what is left of each file (`announce`)."""
    check_lengths(task, chat_format, max_prompt_tokens, on_long_prompt)
    announce(task)


def no_response_problem(num_asked: int, max_model_len: int, overlong: OverlongPenalty | None) -> str:
    """Return why nothing can be trained on, after a whole pass over the questions.

    Args:
        num_asked: Questions of that pass.
        max_model_len: Context of the engine.
        overlong: May mask what was cut off.
    """
    masked = ""
    if overlong is not None and overlong.mask_truncated:
        masked = " Or all trajectories were cut off: raise `max_response_tokens`, or unset `overlong.mask_truncated`."
    return (
        f"A prompt must leave room for a response within {max_model_len} tokens, but none of the {num_asked} questions "
        f"asked last does. Shorten the questions or raise `engine.max_model_len`.{masked}"
    )
