"""Where the policy comes from: architecture, tokenizer, weights; and what may be steered while it is trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeights:
    """Weights that lie in a folder of safetensors files, under the names of Hugging Face's modules."""

    folder: Path
    dtype: torch.dtype
    """Training precision, whatever that of the files is."""


@runtime_checkable
class PolicySource(Protocol):
    """Where the policy comes from: an architecture, a tokenizer and weights."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that belongs to the model."""
        ...

    @property
    def config(self) -> PretrainedConfig:
        """The Hugging Face configuration of the architecture."""
        ...

    def build_model(self) -> PreTrainedModel:
        """Return a new model with its weights, in training precision, on the CPU."""
        ...

    def find_weights(self) -> StoredWeights | None:
        """Return the files that `build_model` reads, after a download if need be; None if it reads none.

        Ranks then read their own parts of them, and none holds the whole model.

        Raises:
            DataError: If there are no such files.
        """
        ...


@runtime_checkable
class EntropyRegularised(Protocol):
    """What trains a policy with a bonus for its entropy, whose weight may be set between optimiser steps."""

    entropy_coefficient: float
