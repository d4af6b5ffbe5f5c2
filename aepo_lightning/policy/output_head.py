"""What a model does between its last hidden states and its logits, found by trying.

The model's own `forward` runs over hidden states and an output embedding that are made for it: one number wide, over
the whole vocabulary. That takes milliseconds for a model of any size, also on the meta device, and shows scale and cap
under whatever name a configuration has for them. What is more than that is refused before anything is trained.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import PreTrainedModel

from aepo_lightning.errors import ConfigError, boundary
from aepo_lightning.ops.logit_map import LogitMap

logger = logging.getLogger(__name__)

_SMALL, _LARGE = 2.0**-30, 2.0**40
"""Outputs of the head that no cap bends, and that every cap bounds."""
_TOLERANCE = 1e-5
"""Relative difference that float32 may make."""
_ADVICE = "The trainer would compute other log-probs than the model. Use another model."


# Its own numbers are real, also where weights are fake, as in a measurement of memory.
@unset_fake_temporarily()
def measure_logit_map(model: PreTrainedModel) -> LogitMap:
    """Return how a model turns the outputs of its head into logits.

    Args:
        model: Any causal language model, with weights or without. It is the same afterwards.

    Raises:
        ConfigError: If it has no `model` backbone with an `lm_head` that is a linear layer, or its logits are not what
            that layer returns, scaled and capped.
    """
    _check_parts(model)
    probe = _Probe.over(model.lm_head)
    logits = probe.run(model)
    logit_map = _fitted(logits, model)
    expected = logit_map.apply_(probe.outputs.clone())
    far = (logits - expected).abs() > _TOLERANCE * (1 + expected.abs())
    if bool(far.any()):
        position, token = (int(index) for index in far.nonzero()[0])
        raise ConfigError(
            f"Logits must be outputs of the head, scaled and capped, but those of {type(model).__name__} are not: "
            f"where the head returns {float(probe.outputs[position, token]):.6g} for token {token}, the logit must be "
            f"{float(expected[position, token]):.6g}, but is {float(logits[position, token]):.6g}. {_ADVICE}"
        )
    if not logit_map.is_identity:
        cap = "without a cap" if logit_map.cap is None else f"capped at {logit_map.cap:g}"
        logger.info("%s scales its logits by %g, %s.", type(model).__name__, logit_map.scale, cap)
    return logit_map


def _check_parts(model: PreTrainedModel) -> None:
    """Refuse a model without backbone and linear head, or with weights of its own beside them."""
    name = type(model).__name__
    if not all(isinstance(getattr(model, part, None), nn.Module) for part in ("model", "lm_head")):
        raise ConfigError(f"The model must have a `model` backbone and an `lm_head`, but got {name}. {_ADVICE}")
    head = model.lm_head
    if not isinstance(head, nn.Linear) or _computes_its_own(head):
        raise ConfigError(
            f"`lm_head` must be a linear layer, but that of {name} is {type(head).__name__}, which computes something "
            f"else. {_ADVICE}"
        )
    if model._parameters:
        raise ConfigError(
            f"Weights must be in the backbone or the head, but {name} has {sorted(model._parameters)} beside them. "
            f"{_ADVICE}"
        )


def _computes_its_own(head: nn.Linear) -> bool:
    """Whether a linear layer has been changed: by a subclass, in place, or with hooks."""
    has_hooks = bool(head._forward_hooks or head._forward_pre_hooks)
    return type(head).forward is not nn.Linear.forward or "forward" in vars(head) or has_hooks


class _States:
    """Output of a backbone of any kind: None for whatever else is asked for."""

    def __init__(self, hidden: Float[Tensor, "1 seq 1"]) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Probe:
    """Hidden states, output embedding and bias that a model is tried with, in float64."""

    hidden: Float[Tensor, "seq 1"]
    words: Float[Tensor, "vocab 1"]
    bias: Float[Tensor, " vocab"] | None

    @classmethod
    def over(cls, head: nn.Linear) -> "_Probe":
        """Return a probe of a head's vocabulary. Its first two tokens show slope and bound."""
        generator = torch.Generator().manual_seed(0)
        words, bias = torch.randn(2, len(head.weight), 1, generator=generator, dtype=torch.float64).unbind()
        words[:2, 0] = torch.tensor([_SMALL, _LARGE])
        bias[:2] = 0
        # Few bits, so that a conversion of hidden states to the type of the head rounds nothing.
        hidden = torch.tensor([[1.0], [-0.5], [4.0]], dtype=torch.float64)
        return cls(hidden=hidden, words=words, bias=None if head.bias is None else bias[:, 0])

    @property
    def outputs(self) -> Float[Tensor, "seq vocab"]:
        """Return what the head makes of the hidden states."""
        return nn.functional.linear(self.hidden, self.words, self.bias)

    def run(self, model: PreTrainedModel) -> Float[Tensor, "seq vocab"]:
        """Return what a model makes of the hidden states.

        Raises:
            ConfigError: If it asks its backbone for more than the trainer does, has layers between backbone and head,
                or fails.
        """

        def refuse(error: Exception) -> NoReturn:
            if isinstance(error, ConfigError):
                raise error
            raise ConfigError(
                f"Logits must be computed from the last hidden states by the head alone, but {name} fails where it has "
                f"only those: {error!r}. {_ADVICE}"
            ) from error

        name = type(model).__name__
        ids = torch.zeros(1, len(self.hidden), dtype=torch.long)
        logits: Tensor = torch.empty(0)
        with ExitStack() as stack, boundary(refuse), torch.no_grad():
            stack.enter_context(_in_evaluation(model))
            stack.enter_context(_replaced_forward(model.model, self._backbone))
            stack.enter_context(_replaced_forward(model.lm_head, self._head))
            for child_name, child in model.named_children():
                if child is not model.model and child is not model.lm_head:
                    stack.enter_context(_replaced_forward(child, _refuse_layer(child_name, name)))
            logits = model.forward(input_ids=ids, use_cache=False).logits.to(torch.float64)
        if logits.shape != (1, *self.outputs.shape):
            raise ConfigError(
                f"There must be logits of shape {(1, *self.outputs.shape)}, but {name} returns {tuple(logits.shape)}. "
                f"{_ADVICE}"
            )
        return logits[0]

    def _backbone(self, input_ids: Tensor | None = None, *_: object, **options: object) -> _States:
        more = sorted(name for name, value in options.items() if isinstance(value, Tensor))
        if input_ids is None or more:
            raise ConfigError(
                f"The backbone must need token ids only, but the model gives it {more or 'no token ids'}. {_ADVICE}"
            )
        return _States(self.hidden[None])

    def _head(self, hidden: Tensor) -> Tensor:
        outputs: Tensor = nn.functional.linear(hidden.to(torch.float64), self.words, self.bias)
        return outputs


def _refuse_layer(child: str, model: str) -> Callable[..., Any]:
    def forward(*_: object, **__: object) -> NoReturn:
        raise ConfigError(f"No layer may stand between backbone and head, but {model} has `{child}`. {_ADVICE}")

    return forward


@contextmanager
def _in_evaluation(model: PreTrainedModel) -> Iterator[None]:
    """Let a model's own `forward` compute what it does where tokens are sampled."""
    was_training = model.training
    model.training = False
    try:
        yield
    finally:
        model.training = was_training


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute something else while the block runs."""
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = own


def _fitted(logits: Float[Tensor, "seq vocab"], model: PreTrainedModel) -> LogitMap:
    """Return scale and cap by the logits of the first two tokens.

    Raises:
        ConfigError: If larger outputs do not give larger logits.
    """
    small, large = float(logits[0, 0] - logits[1, 0]), float(logits[0, 1])
    scale = small / (1.5 * _SMALL)  # the first two hidden states are 1 and -0.5
    if not (math.isfinite(large) and scale > 0 and large > 0):
        raise ConfigError(
            f"Logits must grow with the outputs of the head, but {type(model).__name__} turns {_LARGE:g} into "
            f"{large:g}, and {_SMALL:g} into {float(logits[0, 0]):g}. {_ADVICE}"
        )
    return LogitMap(scale=scale, cap=None if large > scale * _LARGE / 2 else large)
