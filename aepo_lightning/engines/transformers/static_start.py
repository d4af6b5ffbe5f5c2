"""Whether decoding steps of fixed shape serve a model: they are tried, and the reason is named where they do not."""

import logging

from transformers import PreTrainedModel

from aepo_lightning.engines.transformers.cuda_graphs import why_not_captured
from aepo_lightning.engines.transformers.grouped_attention import IMPLEMENTATION
from aepo_lightning.engines.transformers.static_decoding import CaptureError, StaticDecoder
from aepo_lightning.policy.packed import attend_with

logger = logging.getLogger(__name__)


def start_decoder(decoder: StaticDecoder, model: PreTrainedModel, *, insists: bool) -> StaticDecoder | None:
    """Return a decoder that computes what the model does, or None if there is none.

    Args:
        decoder: Over the model, which attends through grouped attention from now on if the decoder is returned.
        model: On its device.
        insists: Whether to refuse a model that it does not serve.

    Raises:
        CaptureError: If it does not, and `insists`.
    """
    implementation = model.config._attn_implementation
    try:
        if reason := why_not_captured(model):
            raise CaptureError(f"Decoding steps of {type(model).__name__} cannot be captured: {reason}.")
        attend_with(model, IMPLEMENTATION)
        decoder.check()
    except CaptureError as error:
        attend_with(model, implementation)
        give_up_graphs(error, insists=insists)
        return None
    return decoder


def give_up_graphs(error: CaptureError, *, insists: bool) -> None:
    """Go on without graphs, and say so.

    Raises:
        CaptureError: If they are insisted on.
    """
    if insists:
        raise CaptureError(f"{error} Set `engine.cuda_graphs=auto`.") from error
    logger.warning("The engine decodes without CUDA graphs, several times slower. %s", error)
