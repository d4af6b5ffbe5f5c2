"""Tree packing in another trainer's loop: shared prefixes are computed once, loss and gradient stay what they were.

    python examples/tree_packing_elsewhere.py

`pack_rows` takes right-padded rows and a mask, as most trainers have them. `PolicyNetwork` returns log-probs in the
shape of the mask, packed or not, so the loss is written once.
"""

import torch

from aepo_lightning import PolicyNetwork, ScratchPolicy, build_byte_tokenizer, pack_rows

TINY = {"model_type": "qwen3", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}

torch.manual_seed(0)
tokenizer = build_byte_tokenizer()
prompt = "A long question that every trajectory of the group begins with, tool result included. "
texts = [prompt + answer for answer in ("yes", "yes, because", "no", "it depends on the question")]
rows = [tokenizer.encode(text) for text in texts]
advantages = torch.tensor([1.0, 0.5, -1.0, -0.5])

lengths = torch.tensor([len(row) for row in rows])
width = int(lengths.max())
input_ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
predicts = torch.arange(1, width)  # column t of the mask speaks about token t + 1
mask = (predicts >= len(tokenizer.encode(prompt))) & (predicts < lengths[:, None])
packed = pack_rows(input_ids, lengths, mask)


def train(packed) -> list[float]:
    """Return the loss of each of three steps of policy gradient with an entropy bonus."""
    model = ScratchPolicy(tokenizer=tokenizer, architecture=TINY).build_model()
    network = PolicyNetwork(model)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        scores = network(input_ids, mask, entropy="grad", packed=packed)
        loss = -(advantages[:, None] * scores.logprobs + 0.01 * scores.entropies)[mask].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


print(f"tokens computed: {input_ids.numel()} padded, {len(packed.input_ids)} packed")
print("losses padded:", *(f"{loss:.6f}" for loss in train(None)))
print("losses packed:", *(f"{loss:.6f}" for loss in train(packed)))
