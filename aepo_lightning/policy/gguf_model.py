"""A GGUF file of a small Llama turned into a Hugging Face folder that transformers and vLLM load.

    python -m aepo_lightning.policy.gguf_model FILE FOLDER

No network is needed. Weights come out in bfloat16: what was lost when the file was quantised stays lost.
"""

import argparse
import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from aepo_lightning.errors import AepoError, DataError
from aepo_lightning.policy.gguf_file import GGUFFile
from aepo_lightning.policy.hf_folder import FolderWriter
from aepo_lightning.policy.source import ScratchPolicy

DIGEST = "gguf"
"""Under this name the folder keeps the SHA-256 of the file it was made of."""
_SPECIAL = 3
"""Type of a token that is no text."""
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TENSOR = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.weight")


def convert(gguf_path: Path, folder: Path) -> None:
    """Write a Hugging Face folder.

    Args:
        gguf_path: A Llama with SmolLM's tokenizer, stored as F32, F16, Q8_0 or Q4_1.
        folder: New, or an earlier export, which is replaced.

    Raises:
        ConfigError: If something else is in the folder.
        DataError: If the file is damaged or of another architecture or tokenizer, or the folder cannot be written.
    """
    file = GGUFFile.open(gguf_path)
    for name, known in (("general.architecture", "llama"), ("tokenizer.ggml.pre", "smollm")):
        if file.value(name) != known:
            raise DataError(
                f"{name} of {gguf_path} must be {known}, but is {file.value(name)!r}. Convert this model elsewhere."
            )
    source = ScratchPolicy(tokenizer=_tokenizer(file), architecture=_architecture(file))
    with gguf_path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    FolderWriter(target=folder, source=source, made_of={DIGEST: digest}).write_model(_weights(file), torch.bfloat16)


def _architecture(file: GGUFFile) -> dict[str, Any]:
    def value(name: str) -> Any:
        found = file.value(f"llama.{name}")
        return float(f"{found:.7g}") if isinstance(found, float) else found  # the file has them as float32

    return {
        "model_type": "llama",
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "head_dim": value("rope.dimension_count"),
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_type": "default", "rope_theta": value("rope.freq_base")},
        "tie_word_embeddings": "output.weight" not in file.names(),
        "bos_token_id": file.value("tokenizer.ggml.bos_token_id"),
    }


def _tokenizer(file: GGUFFile) -> PreTrainedTokenizerFast:
    """Return the tokenizer: digits one by one, then byte-level BPE."""
    tokens = file.value("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in file.value("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = file.value("tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _SPECIAL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    ids = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    named = {f"{role}_token": tokens[file.value(f"tokenizer.ggml.{key}_token_id")] for role, key in ids.items()}
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        chat_template=file.value("tokenizer.chat_template"),
        model_max_length=file.value("llama.context_length"),
        clean_up_tokenization_spaces=False,
        **named,
    )


def _weights(file: GGUFFile) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights under Hugging Face's names, queries and keys in the order of its rotary embedding."""
    heads = {"attn_q": file.value("llama.attention.head_count"), "attn_k": file.value("llama.attention.head_count_kv")}
    for name, weight in file.tensors():
        found = _TENSOR.fullmatch(name)
        if found is None or found[2] not in _NAMES:
            raise DataError(f"Tensors of {file.path} must be those of a Llama, but there is {name}. Name another file.")
        if found[2] in heads:
            # llama.cpp turns neighbours, Hugging Face the halves of a head.
            shape = (heads[found[2]], -1, 2, weight.shape[1])
            weight = weight.reshape(shape).transpose(1, 2).reshape(weight.shape)
        prefix = f"model.layers.{found[1]}." if found[1] else ""
        yield f"{prefix}{_NAMES[found[2]]}.weight", weight


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a GGUF file")
    parser.add_argument("folder", type=Path, help="the folder to write")
    args = parser.parse_args()
    try:
        convert(args.file, args.folder)
    except AepoError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
