"""The policy: where it comes from, the network that is trained, and how its weights are read, written and published.

source.py           architecture, tokenizer and first weights
hub.py              whether the Hub answers
tokenizers.py       tokenizers made from nothing
stored_tokenizer.py tokenizers of folders and the Hub
end_tokens.py       which tokens end a message
network.py          the network that is trained: log-probs and entropies of tokens
output_head.py      scale and cap of a model's logits, found by trying
rounding.py         how far two computations of the same hidden states may be apart
packed.py           the backbone on packed trees
fused_norms.py      RMS norms as one kernel each
tiled_mlp.py        gated MLPs tile by tile on a CPU
lora.py             low-rank adapters
skeleton.py         a model without memory
weight_files.py     weights from safetensors files, of each tensor the rows that a rank holds
checked_weights.py  weights against the model that they are for
gguf_file.py        GGUF files, read without another library
gguf_model.py       a GGUF file turned into a Hugging Face folder
hf_folder.py        Hugging Face folders, written tensor by tensor
sharding/           FSDP
publishing/         weights to engines and to the disk
"""
