"""Small GGUF files, written from their definition."""

import struct

import numpy as np

from tests.support.builders import tiny_policy

TEXTS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
F32 = 0
FORMATS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8}


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def typed(value):
    """A value behind the number of its type."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, list):
        kind = typed(value[0])[:4]
        return struct.pack("<I", 9) + kind + struct.pack("<Q", len(value)) + b"".join(typed(each)[4:] for each in value)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)


def padded(data, step=32):
    return data + bytes(-len(data) % step)


def write_gguf(path, values, tensors):
    """Write a file.

    Args:
        path: The file.
        values: By name.
        tensors: By name: shape, number of the format, bytes.
    """
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    head += b"".join(text(name) + typed(value) for name, value in values.items())
    start = 0
    for name, (shape, kind, data) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += struct.pack("<IQ", kind, start)
        start += len(padded(data))
    path.write_bytes(padded(head) + b"".join(padded(data) for _, _, data in tensors.values()))
    return path


def tokenizer_values():
    """A byte-level vocabulary with three special tokens and one merge."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*TEXTS, *sorted(ByteLevel.alphabet()), "12"]
    return {
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["1 2"],
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
    }


def tiny_llama(is_tied=True):
    """A Llama whose weights bfloat16 holds exactly, with the vocabulary of `tokenizer_values`."""
    from transformers import AutoModelForCausalLM

    source = tiny_policy("llama", tie_word_embeddings=is_tied, num_key_value_heads=2)
    config = source.config
    config.vocab_size = len(tokenizer_values()["tokenizer.ggml.tokens"])
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        weight.data.copy_(weight.data.bfloat16())
    return model


def model_values(config):
    return {
        "general.architecture": "llama",
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "llama.rope.dimension_count": config.head_dim,
    } | tokenizer_values()


def model_tensors(model):
    """The weights as llama.cpp's converter writes them: other names, rows of queries and keys in another order."""
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "attn_output",
        **{f"self_attn.{letter}_proj": f"attn_{letter}" for letter in "qkv"},
        **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    }
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    tensors = {}
    for full, weight in model.named_parameters():
        name, _, _ = full.rpartition(".")
        layer = f"blk.{name.split('.')[2]}." if ".layers." in name else ""
        stored = names[name.split(".", 3)[3] if layer else name]
        values = weight.detach().numpy()
        if stored in heads:
            shape = (heads[stored], 2, -1, values.shape[1])
            values = values.reshape(shape).swapaxes(1, 2).reshape(values.shape)
        tensors[f"{layer}{stored}.weight"] = (values.shape, F32, np.ascontiguousarray(values).tobytes())
    return tensors
