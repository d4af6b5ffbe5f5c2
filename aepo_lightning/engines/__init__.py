"""What generates tokens: each engine takes token ids and returns token ids, log-probs and entropies.

`transformers` is the embedded default and needs nothing but torch. The parts beneath it (sampling with
per-request random numbers, the slot cache, stop strings) have files of their own. `vllm` runs vLLM in the same
process; it is not imported here, because vLLM is an extra. To add an engine, satisfy `contracts.engine.Engine` and point a
file under `conf/engine/` at it.
"""

from aepo_lightning.engines.transformers.engine import TransformersEngine

__all__ = ["TransformersEngine"]
