"""The ways in which a judge comes to no verdict."""

from enum import StrEnum


class AbstentionKind(StrEnum):
    """Why a judge abstained."""

    UNREACHABLE = "unreachable"
    """No connection, or one that broke off."""
    TIMEOUT = "timeout"
    OUTAGE = "outage"
    """Nobody was asked: claim after claim had come to nothing, and the server is left alone for a while."""
    BUSY = "busy"
    """Too many requests, also after all attempts."""
    FAILED = "failed"
    """The server says that it failed."""
    REFUSED = "refused"
    """The server refuses the request: the key, the model, a prompt beyond its context."""
    REDIRECTED = "redirected"
    """The server sends the request elsewhere, where it does not go."""
    MALFORMED = "malformed"
    """An answer that is no chat completion, such as a page of HTML."""
    CUT_OFF = "cut_off"
    """The reply reached its limit of tokens."""
    WITHHELD = "withheld"
    """The model or a filter declined to reply."""
    UNREADABLE = "unreadable"
    """The reply is no verdict: prose round it, two of them, half an object, an unknown word."""
    UNDECIDED = "undecided"
    """The judge itself abstains."""
    TOO_LONG = "too_long"
    """The claim is longer than what a judge is given."""


class JudgeFailure(Exception):  # noqa: N818  # not an error of the program: it ends as a verdict
    """What kept a request from a verdict. Its text holds no secret."""

    def __init__(
        self, kind: AbstentionKind, text: str, *, can_pass: bool = False, retry_after_s: float | None = None
    ) -> None:
        """Keep what happened.

        Args:
            kind: What became of it.
            text: What the judge or its server did, as the end of a sentence.
            can_pass: Whether another attempt may succeed.
            retry_after_s: How long the server asked to wait. None if it did not say.
        """
        super().__init__(text)
        self.kind = kind
        self.can_pass = can_pass
        self.retry_after_s = retry_after_s
