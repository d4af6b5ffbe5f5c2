"""The policy as one module whose `forward` returns log-probs and entropies.

Backbone and chunked head share one `forward`, so that FSDP can shard the module as one root: its all-gather then covers
embedding, final norm and head together.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from aepo_lightning.contracts.batch import PackedTokens
from aepo_lightning.ops.logit_blocks import AUTO, ChunkSize
from aepo_lightning.ops.logprob import EntropyMode, chunked_logprob
from aepo_lightning.ops.tree_attention import BackEnd
from aepo_lightning.policy.fused_norms import fuse_norms
from aepo_lightning.policy.output_head import measure_logit_map
from aepo_lightning.policy.packed import (
    BackEndChoice,
    attend_with,
    check_packing,
    exact_attention,
    packed_states,
    padded_attention,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenScores:
    """What the policy says about the response tokens. Zero outside the response mask."""

    logprobs: Float[Tensor, "batch response"]
    entropies: Float[Tensor, "batch response"]


def _has_noise(module: nn.Module) -> bool:
    """Whether a module computes something random where it is trained, by the numbers that it keeps."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    numbers = {name: value for name, value in vars(module).items() if type(value) in (int, float)}
    # Routers with jitter sample experts even where it is zero.
    return any("jitter" in name or ("drop" in name and value > 0) for name, value in numbers.items())


class PolicyNetwork(nn.Module):
    """A causal language model that scores given tokens."""

    def __init__(
        self,
        model: PreTrainedModel,
        chunk_size: ChunkSize = AUTO,
        gradient_checkpointing: bool = False,
        packed_attention: BackEnd | None = None,
        *,
        fused_norms: bool = False,
    ) -> None:
        """Wrap a Hugging Face model.

        Args:
            model: Any causal language model with a `model` backbone and a linear `lm_head`, with or without a bias.
                What it does to the outputs of the head, a scale or a cap, is found out here.
            chunk_size: Rows of logits that exist at once, or `auto`: 256 MiB of them.
            gradient_checkpointing: Recompute activations in the backward pass.
            packed_attention: Back end of packed batches. None picks the fastest for each.
            fused_norms: Compute RMS norms with one kernel each; those of 16 bits are then rounded once, not twice.

        Raises:
            ConfigError: If the model does anything else between its last hidden states and its logits.
        """
        super().__init__()
        self.model = model
        self._logit_map = measure_logit_map(model)
        self._chunk_size = chunk_size
        self._choose_back_end = BackEndChoice(packed_attention)
        self._has_checked_packing = False
        self._attention = exact_attention(model)
        model.config.use_cache = False
        if fused_norms:
            fuse_norms(model)
        if gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.train(model.training)

    @override
    def train(self, mode: bool = True) -> "PolicyNetwork":
        """Set the mode, but keep whatever has dropout or a noisy router in evaluation.

        Rollouts are sampled without noise, so that importance ratios would be those of another policy.
        """
        super().train(mode)
        for module in filter(_has_noise, self.modules()):
            module.training = False
        return self

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"],
        response_mask: Bool[Tensor, "batch response"],
        temperature: float = 1.0,
        entropy: Literal["none", "detached", "grad"] = "detached",
        packed: PackedTokens | None = None,
    ) -> TokenScores:
        """Return log-probs and entropies of `input_ids[:, 1:]` where the response mask is True.

        Rows are padded on the right. Under a causal mask padding cannot reach the tokens before it, so no attention
        mask is needed and the fast causal kernels apply.

        Args:
            input_ids: Tokens, one column more than `response_mask`.
            response_mask: Which predictions to score. Only these rows meet the output embedding.
            temperature: Sampling temperature of the tokens.
            entropy: Whether entropies are computed, and whether gradients flow through them.
            packed: The same rows packed, to be run in place of them. Each shared token is then computed once, and its
                numbers stand in every row that has it.

        Raises:
            TrainingError: If rows are packed and the architecture cannot run them, or computes something else then.
        """
        mode: EntropyMode = entropy
        if packed is None:
            attend_with(self.model, padded_attention(self._attention, input_ids.device))
            states = self.model.model(input_ids=input_ids, use_cache=False).last_hidden_state
            hidden = states[:, :-1][response_mask]
            targets = input_ids[:, 1:][response_mask]
        else:
            if not self._has_checked_packing:
                check_packing(self.model, self._attention, input_ids.device)
                self._has_checked_packing = True
            hidden = packed_states(self.model, packed, self._choose_back_end)[packed.sources]
            targets = packed.targets
        head = self.model.lm_head
        scores = chunked_logprob(
            hidden,
            head.weight,
            targets,
            temperature,
            bias=head.bias,
            logit_map=self._logit_map,
            chunk_size=self._chunk_size,
            entropy=mode,
        )
        logprobs, entropies = scores.logprobs, scores.entropies
        if packed is not None:
            logprobs = logprobs[packed.scored_index]
            entropies = None if entropies is None else entropies[packed.scored_index]
        zeros = logprobs.new_zeros(response_mask.shape)
        # An empty micro-batch keeps this graph and gives every parameter a zero, or ranks would wait for it for ever.
        logprobs = zeros.masked_scatter(response_mask, logprobs)
        entropies = zeros if entropies is None else zeros.masked_scatter(response_mask, entropies)
        return TokenScores(logprobs=logprobs, entropies=entropies)
