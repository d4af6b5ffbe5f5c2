"""What generates tokens: each engine takes token ids and returns token ids, log-probs and entropies.

`transformers/` is the embedded default and needs nothing but torch; `vllm/` runs vLLM in the same process and
`vllm_server/` uses a pool of servers. vLLM is an extra, so nothing of it is imported here. What they share (requests,
sampling with random numbers of their own, stop strings, adapters) stands beside them. To add an engine, satisfy
`contracts.engine.Engine` and point a file under `conf/engine/` at it.
"""

from aepo_lightning.engines.transformers.engine import TransformersEngine

__all__ = ["TransformersEngine"]
