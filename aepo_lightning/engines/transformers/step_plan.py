"""The passes of the embedded engine between two looks at its new requests."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from aepo_lightning.engines.request import Request


@dataclass(slots=True, kw_only=True)
class StepPlan:
    """Passes over prompts, and the step of the requests that decode, which comes after the last of them."""

    feeding: deque[list[Request]]
    """Requests of each pass over prompts and tool results that is to come."""
    decoding: list[Request]
    """Requests with one token to feed, or with none while that token is on its way."""

    @classmethod
    def of(cls, running: Iterable[Request], max_prefill_tokens: int) -> "StepPlan":
        """Plan passes for running requests, those with little to feed first.

        Args:
            running: Requests that have a slot.
            max_prefill_tokens: Most tokens (padding included) of one pass over prompts; a longer one has its own.
        """
        feeding: deque[list[Request]] = deque()
        waiting = [request for request in running if request.num_pending > 1]
        for request in sorted(waiting, key=lambda each: each.num_pending):
            if not feeding or request.num_pending * (len(feeding[-1]) + 1) > max_prefill_tokens:
                feeding.append([])
            feeding[-1].append(request)
        return cls(feeding=feeding, decoding=[request for request in running if request.num_pending <= 1])

    def next_to_feed(self) -> list[Request]:
        """Take the next pass over prompts; return those of its requests that nobody has cancelled meanwhile."""
        return unfinished(self.feeding.popleft()) if self.feeding else []


def unfinished(requests: Iterable[Request]) -> list[Request]:
    """Return the requests whose answer somebody still waits for."""
    return [request for request in requests if not request.future.done()]
