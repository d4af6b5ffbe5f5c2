"""vLLM in the trainer's process. `engine.py` and its neighbours are the only modules that import vLLM."""
