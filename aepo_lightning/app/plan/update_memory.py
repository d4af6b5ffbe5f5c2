"""How much memory one device needs while the policy is updated.

A step goes through moments: the log-prob head, the layers backwards, the reduction of gradients, the optimiser. Each
frees much of what the one before needed, so the peak is the largest moment, not a sum over all. The formulas hold for
attention kernels that never store the attention matrix. `benchmarks/plan.py` compares them with real steps.

The symbols of all formulas: P, R and L are the parameters of the model, of its root unit (embedding, final norm, head)
and of one layer; N ranks, n layers, T tokens of the largest pass, h the hidden size, f the MLP width, V the vocabulary;
b the bytes of a number that is computed with, w of a weight; A what one layer saves per token
(`ModelSize.saved_bytes_per_token`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from aepo_lightning.app.plan.input import PlanInput
from aepo_lightning.app.plan.model_size import FP32, ModelSize
from aepo_lightning.app.plan.spread import Spread
from aepo_lightning.ops.logit_blocks import MOST_LOGITS_ON_CPU, BlockShape

WEIGHTS, OPTIMISER, GRADIENTS = "weights", "AdamW states", "gradients"
GATHERED, BUFFERS, ACTIVATIONS, HEAD = "gathered weights", "gradient buffers", "activations", "log-prob head"
REFERENCE, WORKSPACE = "reference model", "optimiser workspace"
FORWARD_BLOCKS, BACKWARD_BLOCKS = 2, 1
"""Blocks of logits that exist at once: logits and exponentials; backwards a gradient in place."""
GPU_BLOCKS = (1, 2)
"""How many more there are on a GPU: what a product returns beside the buffer, and backwards the block before."""
BATCH_BYTES = 33
"""Of each token of a batch: token id, mask and six fp32 numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Everything that exists on one device at one point of an optimiser step."""

    name: str
    parts: Mapping[str, int]
    """Bytes by purpose."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class UpdateMemory:
    """The formulas for one model and one run. All results are bytes on the rank that holds most."""

    size: ModelSize
    settings: PlanInput

    def moments(self) -> tuple[Moment, ...]:
        """Return the moments of a step that can be the largest, in their order."""
        last = self.size.num_layers
        found = {
            "log-prob head, forward": self._head_forward(),
            "log-prob head, backward": self._head(),
            "last layer": self._layer(last),
            "second to last layer": self._layer(max(last - 1, 1)),
            "gradients of a layer": self._layer_gradients(),
            "gradients of the embedding": self._embedding_gradient(),
            "reduction of the root unit": self._root_reduction(),
            "optimiser": self._optimiser(),
        }
        return tuple(
            Moment(name=name, parts={part: size for part, size in (self.states() | parts).items() if size})
            for name, parts in found.items()
        )

    def peak(self) -> Moment:
        """Return the largest moment."""
        return max(self.moments(), key=lambda moment: moment.num_bytes)

    def states(self) -> dict[str, int]:
        """Weights wP/N, AdamW 2wP/N, gradients wP/N, reference wP/N. Offloaded ones are in host memory.

        With an adapter, states and gradients are those of the adapter, and the reference is the policy without it.
        """
        found = self._states()
        return dict.fromkeys(found, 0) if self._is_offloaded else found

    def resting(self) -> dict[str, int]:
        """Return what is left between updates, and the largest unit gathered for a publication: 2b max(R, L)."""
        spread = self._spread
        copies = (1 + (spread.ranks > 1)) * spread.is_sharded
        published = copies * spread.width * max(spread.root, spread.layer)
        return {name: size for name, size in self.states().items() if name != GRADIENTS} | {GATHERED: published}

    def offloaded_bytes(self) -> int:
        """Return what each rank has in host memory instead."""
        return sum(self._states().values()) * self._is_offloaded

    @property
    def _is_offloaded(self) -> bool:
        """On a CPU nothing can be moved away."""
        return self.settings.is_cpu_offloaded and self.settings.is_sharded and self.settings.is_gpu

    def _states(self) -> dict[str, int]:
        spread = self._spread
        return {
            WEIGHTS: spread.weight * spread.shard(),
            OPTIMISER: 2 * spread.weight * spread.trained_shard(),
            GRADIENTS: spread.weight * spread.trained_shard() * (1 + (self.settings.sharding == "replicated")),
            REFERENCE: spread.weight * spread.shard() * (self.settings.has_reference and spread.trains_weights),
        }

    @property
    def _spread(self) -> Spread:
        return Spread(self.size, self.settings)

    def _gradients(self, num_reduced: int) -> int:
        """wP/N; those of units that are not reduced yet are whole where reduction is deferred to the last pass."""
        spread = self._spread
        if not (spread.is_sharded and self.settings.is_gradient_sync_deferred):
            return self.states()[GRADIENTS]
        waiting = (self.size.num_layers - num_reduced) * spread.trained_layer + spread.trained_root
        done = num_reduced * spread.weight * spread.trained_layer_shard() * (not self._is_offloaded)
        return waiting * spread.reduced + done

    # Moments --------------------------------------------------------------------------------------------------------

    def _head_forward(self) -> dict[str, int]:
        """The end of the forward pass: everything that is saved, and blocks of logits with their exponentials."""
        spread, hidden, block = self._spread, self.size.hidden_size, self._block()
        num_blocks = FORWARD_BLOCKS + GPU_BLOCKS[0] * self.settings.is_gpu
        widened = (block.columns + self._tokens) * hidden * self._is_widened
        return {
            GRADIENTS: self._gradients(0),
            ACTIVATIONS: self._saved_before_head() + self._tokens * spread.width * hidden,
            GATHERED: self._gathered(self.size.num_layers, has_layer=False),
            HEAD: FP32 * (num_blocks * block.numel + widened),
        }

    def _head(self) -> dict[str, int]:
        """Backwards through the head: what is saved, blocks of logits, the head's gradient, those of hidden states.

        In fp32, 4 bytes each: 3 blocks on a GPU and 1 on a CPU, which writes in place; hC gradients of the C words of
        a block, of two parts for a moment; hT gradients of hidden states, then rounded to b bytes. On a CPU, 16-bit
        words and hidden states are widened to fp32 first.
        """
        spread, hidden, block = self._spread, self.size.hidden_size, self._block()
        words = (2 - (block.columns == self.size.vocab_size)) * spread.trains_weights + self._is_widened
        num_blocks = BACKWARD_BLOCKS + GPU_BLOCKS[1] * self.settings.is_gpu
        numbers = num_blocks * block.numel + words * block.columns * hidden
        states = FP32 * (1 + self._is_widened) + spread.width * (spread.width < FP32)
        return {
            GRADIENTS: self._gradients(0),
            ACTIVATIONS: self._saved_before_head(),
            GATHERED: self._gathered(self.size.num_layers, has_layer=False),
            BUFFERS: self._head_gradient(),
            HEAD: FP32 * numbers + states * self._tokens * hidden,
        }

    def _block(self) -> BlockShape:
        num_logits = self.settings.logprob_chunk_tokens * self.size.vocab_size
        if not self.settings.is_gpu:
            num_logits = min(num_logits, MOST_LOGITS_ON_CPU)
        return BlockShape.within(num_logits, self._tokens, self.size.vocab_size)

    @property
    def _is_widened(self) -> bool:
        """Whether the head multiplies in fp32 what is in 16 bits."""
        return self._spread.width < FP32 and not self.settings.is_gpu

    def _layer(self, number: int) -> dict[str, int]:
        """The MLP of one layer backwards, the widest point of a layer: A and the gradients of product and factors."""
        spread, mlp, hidden = self._spread, self.size.intermediate_size, self.size.hidden_size
        recomputed = self._recomputed() if self.settings.is_checkpointed else 0
        gradients = spread.width * (2 * mlp + hidden)
        down = spread.width * mlp * hidden * spread.trains_weights
        is_waiting = spread.is_sharded or self.size.is_tied
        reducing = spread.reduced * spread.trained_layer * (number < self.size.num_layers) * spread.is_sharded
        return {
            GRADIENTS: self._gradients(self.size.num_layers - number),
            ACTIVATIONS: self._saved(number) + self._tokens * (recomputed + gradients),
            GATHERED: self._gathered(number, has_layer=True),
            BUFFERS: down + reducing + self._head_gradient() * is_waiting,
        }

    def _layer_gradients(self) -> dict[str, int]:
        """The end of a layer: its gradients in b bytes and the fp32 buffer that reduces them."""
        spread, number = self._spread, self.size.num_layers
        return {
            GRADIENTS: self._gradients(0),
            ACTIVATIONS: self._saved(number) + self._tokens * spread.width * self.size.hidden_size,
            GATHERED: self._gathered(number - 1, has_layer=False),
            BUFFERS: (spread.reduction(spread.trained_layer) + self._head_gradient()) * spread.is_sharded,
        }

    def _embedding_gradient(self) -> dict[str, int]:
        """The very end of the backward pass: the gradient of the embedding beside that of the head."""
        spread = self._spread
        own = (3 if self.size.is_tied else 1) * self._head_gradient()
        waiting = self._head_gradient() * (not self.size.is_tied) + spread.reduced * spread.trained_layer
        return {
            ACTIVATIONS: self._fixed() + self._tokens * spread.width * self.size.hidden_size,
            GATHERED: self._gathered(0, has_layer=False),
            BUFFERS: own + waiting * spread.is_sharded,
        }

    def _root_reduction(self) -> dict[str, int]:
        """The gradients of the root unit: (4 + max(b, 4/N)) R."""
        spread = self._spread
        return {ACTIVATIONS: self._fixed(), BUFFERS: spread.reduction(spread.trained_root) * spread.is_sharded}

    def _optimiser(self) -> dict[str, int]:
        """The step of AdamW, which needs the square root of its second moment beside all states."""
        spread = self._spread
        numbers = spread.trained_shard() if self.settings.is_gpu else 2 * spread.largest_trained_shard()
        return {ACTIVATIONS: self._fixed(), WORKSPACE: spread.weight * numbers * (not self._is_offloaded)}

    # Parts of several moments -----------------------------------------------------------------------------------------

    def _gathered(self, number: int, has_layer: bool) -> int:
        """The root unit, the layer that computes, and layer `number` - 1 (or `number` itself) on its way.

        One rank gathers nothing from others, but has its copies in b bytes. Layers that are not resharded after the
        forward pass are all there. Offloaded shards come to the device in w bytes first.
        """
        spread = self._spread
        if not spread.is_sharded:
            return 0
        if not self.settings.is_resharded_after_forward:
            return spread.width * (spread.root + number * spread.layer)
        on_its_way = spread.width * spread.layer * (spread.ranks > 1 and number - has_layer > 0)
        staged = (spread.weight + spread.width) * spread.layer // spread.ranks * self._is_offloaded
        return spread.width * (spread.root + spread.layer * has_layer) + on_its_way + staged

    @property
    def _tokens(self) -> int:
        return self.settings.pass_tokens

    def _fixed(self) -> int:
        """The micro-batches of a step."""
        return BATCH_BYTES * self._tokens * self.settings.micro_batches_per_step

    def _saved(self, number: int) -> int:
        """What the forward pass has kept for layers 1 to `number`: inputs bhTn, or ATn without checkpointing."""
        width = self._spread.width
        per_layer = width * self.size.hidden_size if self.settings.is_checkpointed else self._layer_saved()
        rope = 2 * width * self.size.head_dim
        return self._tokens * (number * per_layer + rope) + self._fixed()

    def _saved_before_head(self) -> int:
        """All layers, the final norm, and the hidden states of the tokens that are scored: all of them at most."""
        spread, hidden = self._spread, self.size.hidden_size
        normalised = spread.width * hidden * spread.trains_weights
        final_norm = FP32 * hidden + FP32 + normalised
        return self._saved(self.size.num_layers) + self._tokens * (final_norm + spread.width * hidden)

    def _recomputed(self) -> int:
        """A. In fp32 a norm saves its input itself, which is the saved input of the layer."""
        shared = self.size.hidden_size * FP32 if self._spread.width == FP32 else 0
        return self._layer_saved() - shared

    def _layer_saved(self) -> int:
        return self._spread.saved_bytes_per_token()

    def _head_gradient(self) -> int:
        """The gradient of the head, which waits for the rest of the root unit."""
        return self._spread.width * self._spread.head * self._spread.trains_weights
