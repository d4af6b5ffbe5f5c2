"""The embedded engine: continuous batching and a prefix cache on a transformers model, in the trainer's process."""
