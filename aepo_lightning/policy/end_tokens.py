"""Which tokens end a message, hence a generation: those that the tokenizer and the model name together.

A tokenizer names one. Models of several roles name more in `generation_config.json`, such as the end of a turn beside
the end of a text, and that list alone decides what other libraries stop at.
"""

from collections.abc import Iterable
from typing import Any

from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.errors import DataError


def eos_token_ids(policy: PolicySource) -> tuple[int, ...]:
    """Return the tokens that end a generation of a policy, each once, in ascending order.

    They are the tokenizer's `eos_token`, and `eos_token_id` of the policy's `generation_config`: a number, a list or
    nothing. A policy without a `generation_config` is asked for that of its `config`.

    Args:
        policy: May have a `generation_config`, as `PretrainedPolicy` does.

    Returns:
        Empty if nothing names one: such a policy never ends a message.

    Raises:
        DataError: If what the model names is no token of its tokenizer.
    """
    stated = getattr(policy, "generation_config", None) or policy.config
    found = [*_listed(policy.tokenizer.eos_token_id), *_listed(getattr(stated, "eos_token_id", None))]
    for token in found:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise DataError(
                f"`eos_token_id` of the model's generation_config.json must be a token id or a list of them, but got "
                f"{token!r}. Correct it."
            )
    return tuple(sorted({*found}))


def _listed(value: Any) -> Iterable[Any]:
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)
