"""How the numbers of a model are spread over ranks, in which precision, and which of them are trained."""

from dataclasses import dataclass

from aepo_lightning.app.plan.input import PlanInput
from aepo_lightning.app.plan.model_size import BF16, FP32, ModelSize, Shapes, shard_numbers


@dataclass(frozen=True, slots=True)
class Spread:
    """Counts of numbers on the rank that holds most, and the bytes of each."""

    size: ModelSize
    settings: PlanInput

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds a part of the model."""
        return self.settings.is_sharded

    @property
    def ranks(self) -> int:
        """N, over which parameters are split; 1 where every device has them all."""
        return self.settings.num_gpus if self.is_sharded else 1

    @property
    def weight(self) -> int:
        """w: bytes of a weight, its gradient and each of its states."""
        return self.settings.weight_bytes

    @property
    def width(self) -> int:
        """b: bytes of a number that is computed with."""
        return BF16 if self.is_sharded and self.settings.is_mixed_precision else self.weight

    @property
    def reduced(self) -> int:
        """Bytes of a gradient while ranks add up theirs."""
        return FP32 if self.is_sharded and self.settings.is_mixed_precision else self.weight

    @property
    def trains_weights(self) -> bool:
        """Whether the weights themselves are trained."""
        return not self.settings.adapter_rank

    @property
    def head(self) -> int:
        """Numbers of the output head."""
        return self.size.vocab_size * self.size.hidden_size

    @property
    def root(self) -> int:
        """R, padded to as many rows on every rank."""
        return self.ranks * shard_numbers(self.size.root_shapes, self.ranks)

    @property
    def layer(self) -> int:
        """L, padded likewise, with the adapter."""
        return self.ranks * shard_numbers(self.size.layer_shapes + self._adapter, self.ranks)

    def shard(self) -> int:
        """P/N, with the adapter."""
        return (self.root + self.size.num_layers * self.layer) // self.ranks

    @property
    def trained_root(self) -> int:
        """Trained numbers of the root unit, padded."""
        return self.root * self.trains_weights

    @property
    def trained_layer(self) -> int:
        """Trained numbers of one layer, padded."""
        return self.ranks * self.trained_layer_shard()

    def trained_layer_shard(self) -> int:
        """Trained numbers of one layer on one rank."""
        return shard_numbers(self.size.layer_shapes if self.trains_weights else self._adapter, self.ranks)

    def trained_root_shard(self) -> int:
        """Trained numbers of the root unit on one rank."""
        return self.trained_root // self.ranks

    def trained_shard(self) -> int:
        """Trained numbers of the model on one rank."""
        return self.size.num_layers * self.trained_layer_shard() + self.trained_root_shard()

    def largest_trained_shard(self) -> int:
        """Numbers of the largest trained parameter on one rank."""
        shapes = self.size.layer_shapes + self.size.root_shapes if self.trains_weights else self._adapter
        return max(shard_numbers((shape,), self.ranks) for shape in shapes)

    def reduction(self, numbers: int) -> int:
        """Bytes of the buffer that is reduced, with the gradients it is filled from or the shard that it leaves."""
        return (self.reduced + max(self.width, self.reduced // self.ranks)) * numbers

    def saved_bytes_per_token(self) -> int:
        """A: what one layer saves per token.

        Frozen norms do not keep what they have normalised; an adapter keeps what its first matrix returns.
        """
        saved = self.size.saved_bytes_per_token(self.width)
        if self.trains_weights:
            return saved
        heads = (self.size.num_attention_heads + self.size.num_key_value_heads) * self.size.head_dim
        normalised = 2 * self.size.hidden_size + heads * self.size.has_qk_norm
        return saved - self.width * normalised + self.width * self.settings.adapter_rank * (len(self._adapter) // 2)

    @property
    def _adapter(self) -> Shapes:
        """Shapes of the adapter of one layer: A and B of each linear map."""
        rank = self.settings.adapter_rank
        if not rank:
            return ()
        names = self.settings.adapter_targets or tuple(self.size.linear_shapes)
        maps = [shape for name, shape in self.size.linear_shapes.items() if name in names]
        return tuple(shape for outputs, inputs in maps for shape in ((rank, inputs), (outputs, rank)))
