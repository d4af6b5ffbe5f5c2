"""A pool of vLLM servers on other GPUs or nodes."""
