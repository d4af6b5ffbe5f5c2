"""Low-rank adapters (LoRA) through peft: the policy's weights stay as they are, and small matrices beside them learn.

peft replaces each adapted linear layer by one that holds the old layer (`base_layer`) and two matrices. Everything that
leaves the trainer has the names of the plain Hugging Face model again; the functions here translate.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from aepo_lightning.errors import ConfigError

ADAPTER = "default"
"""peft's name of the one adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRA:
    """Train `scale * up @ down` beside linear layers instead of their weights, with `scale = alpha / rank`.

    Raises:
        ConfigError: If a number has no meaning, or dropout is asked for.

    References:
        LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685, eq. 3. A starts uniform as in peft, and B
        at zero, so that training starts from the policy itself.
    """

    rank: int = 32
    """Rows of A and columns of B."""
    alpha: float = 64.0
    target_modules: Sequence[str] = ()
    """Last parts of the names of linear layers, such as `q_proj`. Empty takes all of the backbone."""
    dropout: float = 0.0
    """Must be 0."""
    seed: int = 0
    """Seed of A."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        object.__setattr__(self, "target_modules", tuple(self.target_modules))
        if self.rank < 1 or not self.alpha > 0:
            raise ConfigError(f"`rank` and `alpha` must be positive, but got {self.rank} and {self.alpha}.")
        if self.dropout:
            raise ConfigError(
                f"`dropout` of an adapter must be 0, but got {self.dropout}: rollouts are sampled without it, so the "
                "importance ratios of the update would be those of another policy. Remove it."
            )

    @property
    def scale(self) -> float:
        """What the product of both matrices is multiplied with."""
        return self.alpha / self.rank

    def inject(self, model: PreTrainedModel) -> None:
        """Put adapters into a model and freeze everything else; also initialise A and B, but not on the meta device.

        Raises:
            ConfigError: If peft is not installed, or there are no such layers.
        """
        if find_spec("peft") is None:
            raise ConfigError("`adapter` needs peft, which is not installed: pip install 'aepo-lightning[lora]'.")
        names = self._layer_names(model)
        peft = import_module("peft")
        is_meta = next(model.parameters()).is_meta
        with torch.random.fork_rng(devices=[]):
            peft.inject_adapter_in_model(self.peft_config(names), model, ADAPTER, low_cpu_mem_usage=is_meta)
        for layer in adapted_layers(model).values():
            for matrix in factors(layer):
                matrix.data = matrix.data.float()  # a step of the optimiser vanishes in the eight bits of bfloat16
        if not is_meta:
            self.initialise(model)

    def peft_config(self, names: Sequence[str]) -> Any:
        """Return what peft calls this adapter, on layers whose names end in `names`."""
        return import_module("peft").LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=sorted(names),
            lora_dropout=0.0,
            bias="none",
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        )

    @torch.no_grad()
    def initialise(self, model: nn.Module) -> None:
        """Fill A and B, whole or sharded: every rank draws the same numbers, whatever the order of layers."""
        for name, layer in adapted_layers(model).items():
            down, up = factors(layer)
            digest = hashlib.blake2b(f"{self.seed}:{name}".encode(), digest_size=7).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
            bound = down.shape[1] ** -0.5  # uniform with the variance of Kaiming's rule for a slope of sqrt(5)
            _fill(down, bound * (2 * torch.rand(down.shape, generator=generator) - 1))
            up.zero_()

    def _layer_names(self, model: PreTrainedModel) -> list[str]:
        present = {name.rpartition(".")[2] for name, module in model.model.named_modules() if type(module) is nn.Linear}
        unknown = sorted(set(self.target_modules) - present)
        if unknown or not present:
            raise ConfigError(
                f"`target_modules` must name linear layers of the backbone, which has {sorted(present)}, but got "
                f"{unknown or 'a model without any'}."
            )
        return sorted(self.target_modules or present)


def _fill(parameter: Tensor, values: Tensor) -> None:
    if isinstance(parameter, DTensor):
        local = distribute_tensor(
            values.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )
        parameter.to_local().copy_(local.to_local())
    else:
        parameter.copy_(values)


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the adapted layers of a Hugging Face model by name; empty without an adapter."""
    return {
        name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A") and ADAPTER in layer.lora_A
    }


def factors(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return A (down) and B (up) of an adapted layer, whole or sharded as they are."""
    own: Any = layer
    return own.lora_A[ADAPTER].weight, own.lora_B[ADAPTER].weight


def scale_of(layer: nn.Module) -> float:
    """Return what the product of an adapted layer is multiplied with."""
    own: Any = layer
    return float(own.scaling[ADAPTER])


def is_adapter(name: str) -> bool:
    """Return whether a parameter belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def plain_name(name: str) -> str:
    """Return the Hugging Face name of a parameter that is not part of an adapter."""
    return name.replace(".base_layer.", ".")


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Let a model compute as it would without its adapter, which is the policy that training started from."""
    layers: list[Any] = list(adapted_layers(model).values())
    scales = [layer.scaling[ADAPTER] for layer in layers]
    try:
        for layer in layers:
            layer.scaling[ADAPTER] = 0.0
        yield
    finally:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scaling[ADAPTER] = scale
