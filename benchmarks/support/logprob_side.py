"""One way to get log-probs and entropies from hidden states, for `benchmarks.logprob`, which starts this file.

It runs in the interpreter that has the way (`sys.argv[1]`), and therefore imports nothing else of this folder. Every
line on standard input is a job, a JSON object; the answer is one line with the seconds of forward and backward pass and
the growth of the peak memory. With `save` the results are written to a file.
"""

import ctypes
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor

TEMPERATURE = 0.7
ENTROPY_WEIGHT = 0.01
Way = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]


def naive(hidden: Tensor, weight: Tensor, target: Tensor, needs_entropy_grad: bool) -> tuple[Tensor, Tensor]:
    """All logits at once, as one writes it first."""
    log_p = torch.log_softmax(hidden @ weight.T / TEMPERATURE, -1)
    logprobs = log_p.gather(-1, target[:, None])[:, 0]
    with torch.set_grad_enabled(needs_entropy_grad):
        entropies = -(log_p.exp() * log_p).sum(-1)
    return logprobs, entropies


def ours(hidden: Tensor, weight: Tensor, target: Tensor, needs_entropy_grad: bool) -> tuple[Tensor, Tensor]:
    """The function of this library."""
    from aepo_lightning.ops.logprob import chunked_logprob

    mode = "grad" if needs_entropy_grad else "detached"
    out = chunked_logprob(hidden, weight, target, TEMPERATURE, entropy=mode)  # type: ignore[arg-type]
    assert out.entropies is not None
    return out.logprobs, out.entropies


def float32_head(hidden: Tensor, weight: Tensor, target: Tensor, needs_entropy_grad: bool) -> tuple[Tensor, Tensor]:
    """The function of this library with float32 operands."""
    from aepo_lightning.ops.logprob import chunked_logprob

    mode = "grad" if needs_entropy_grad else "detached"
    out = chunked_logprob(
        hidden,
        weight,
        target,
        TEMPERATURE,
        entropy=mode,  # type: ignore[arg-type]
        operand_dtype=torch.float32,
    )
    assert out.entropies is not None
    return out.logprobs, out.entropies


def trl(hidden: Tensor, weight: Tensor, target: Tensor, needs_entropy_grad: bool) -> tuple[Tensor, Tensor]:
    """TRL's function, with the vocabulary tiles that its trainers use."""
    from trl.kernels import ChunkedLogProbFunction

    outputs = ChunkedLogProbFunction.apply(hidden, weight, None, target, TEMPERATURE, 32768, None, 1.0, ("entropy",))
    return outputs[0], outputs[1] if needs_entropy_grad else outputs[1].detach()


def liger(hidden: Tensor, weight: Tensor, target: Tensor, needs_entropy_grad: bool) -> tuple[Tensor, Tensor]:
    """Liger's function."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    losses, entropies = LigerFusedLinearScaledCrossEntropyFunction.apply(
        hidden, weight, target, TEMPERATURE, -100, 1, True
    )
    return -losses, entropies if needs_entropy_grad else entropies.detach()


WAYS: dict[str, Way] = {"naive": naive, "ours": ours, "ours_float32_head": float32_head, "trl": trl, "liger": liger}


def memory_mb(name: str) -> float:
    """Return a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def inputs(job: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states, weight, targets and the gradient of the log-probs, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    tokens, words, width = job["tokens"], job["words"], job["width"]
    rounded, dtype = getattr(torch, job.get("rounded", job["dtype"])), getattr(torch, job["dtype"])
    # Logits of a spread of about 2, and entropies of several nats, as language models have.
    weight = (torch.randn(words, width, generator=generator) * 2 / width**0.5).to(rounded).to(dtype).requires_grad_()
    hidden = torch.randn(tokens, width, generator=generator).to(rounded).to(dtype).requires_grad_()
    target = torch.randint(0, words, (tokens,), generator=generator)
    return hidden, weight, target, torch.randn(tokens, generator=generator) / tokens


class Side:
    """The inputs of the last job, which the next one probably shares."""

    def __init__(self, way: Way) -> None:
        """Keep the way."""
        self._way = way
        self._key: object = None
        self._inputs: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def __call__(self, job: dict[str, Any]) -> dict[str, float]:
        """Run one forward and backward pass."""
        key = tuple(job.get(name) for name in ("tokens", "words", "width", "dtype", "rounded"))
        if key != self._key:
            self._inputs = None
            self._inputs, self._key = inputs(job), key
        assert self._inputs is not None
        hidden, weight, target, cotangent = self._inputs
        gradients_mb = sum(x.numel() * x.element_size() for x in (hidden, weight)) / 2**20
        ctypes.CDLL(None).malloc_trim(0)  # what earlier jobs left over would hide memory that this one needs
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        before = memory_mb("VmRSS")
        cpu, start = process_time(), perf_counter()
        logprobs, entropies = self._way(hidden, weight, target, job["entropy"] == "grad")
        forward_s = perf_counter() - start
        loss = (logprobs * cotangent).sum()
        if job["entropy"] == "grad":
            loss = loss + ENTROPY_WEIGHT * entropies.mean()
        loss.backward()
        wall_s, cpu_s = perf_counter() - start, process_time() - cpu
        peak = memory_mb("VmHWM") - before
        if "save" in job:
            results = (logprobs.detach(), entropies.detach(), hidden.grad, weight.grad)
            torch.save(results, job["save"])
        hidden.grad = weight.grad = None
        return {
            "forward_s": forward_s,
            "wall_s": wall_s,
            "cpu_s": cpu_s,
            "peak_mb": peak,
            "working_mb": peak - gradients_mb,
        }


def main() -> None:
    """Answer jobs until there are no more."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(sys.argv[2]))
    side = Side(WAYS[sys.argv[1]])
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(side(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
