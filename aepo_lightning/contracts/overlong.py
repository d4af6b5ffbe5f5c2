"""How far a trajectory is in the lengths that are punished: one rule for rewards and for what advantages see."""

from aepo_lightning.errors import ConfigError

_PAPER_SHARE = 5
"""L_max over L_cache in the paper: 20,480 tokens over 4,096."""


def overlong_share(length: int, is_truncated: bool, max_tokens: int, buffer_tokens: int) -> float:
    """Return which share of the whole punishment a length earns, in [0, 1].

    Args:
        length: Tokens after the prompt, tool results included.
        is_truncated: Whether the trajectory was cut off, which earns all of it.
        max_tokens: L_max: from this length on it is whole.
        buffer_tokens: L_cache: the last so many tokens before `max_tokens`, in which it grows.

    References:
        DAPO, arXiv:2503.14476, eq. 13.
    """
    share = 1.0 if is_truncated else (length - (max_tokens - buffer_tokens)) / buffer_tokens
    return min(1.0, max(0.0, share))


def overlong_buffer(max_tokens: int, buffer_tokens: int | None, name: str) -> int:
    """Return in how many tokens before the longest length the punishment grows.

    Args:
        max_tokens: From this length on it is whole.
        buffer_tokens: As it was set. None is the paper's share of `max_tokens`.
        name: Of the setting, for the message.

    Raises:
        ConfigError: If it is not shorter than `max_tokens`.
    """
    buffer = max(1, max_tokens // _PAPER_SHARE) if buffer_tokens is None else buffer_tokens
    if buffer >= max_tokens:
        raise ConfigError(
            f"`{name}` must be less than the {max_tokens} tokens of the longest trajectory, but got "
            f"{buffer}. Lower it, or leave it out to take a fifth."
        )
    return buffer


def overlong_lengths(
    max_tokens: int | None, buffer_tokens: int | None, max_response_tokens: int, name: str
) -> tuple[int, int]:
    """Return from which length on the punishment is whole, and in how many tokens before it grows.

    Args:
        max_tokens: As it was set. None is the limit of the rollouts.
        buffer_tokens: As it was set. None is the paper's share of the longest length.
        max_response_tokens: Limit of the rollouts.
        name: Of what has the settings, for the message.

    Raises:
        ConfigError: If no trajectory can get as long as `max_tokens`, or the buffer is not shorter than that.
    """
    longest = max_response_tokens if max_tokens is None else max_tokens
    if longest > max_response_tokens:
        raise ConfigError(
            f"`{name}.max_tokens` must be at most `max_response_tokens` ({max_response_tokens}), but got {longest}. "
            "Lower it, or leave it out to take the limit."
        )
    return longest, overlong_buffer(longest, buffer_tokens, f"{name}.buffer_tokens")


def check_overlong_lengths(max_tokens: int | None, buffer_tokens: int | None) -> None:
    """Refuse lengths that are not positive; None is a default.

    Raises:
        ConfigError: If one is below 1.
    """
    for name, value in (("max_tokens", max_tokens), ("buffer_tokens", buffer_tokens)):
        if value is not None and value < 1:
            raise ConfigError(f"`{name}` must be at least 1 or null, but got {value}.")
