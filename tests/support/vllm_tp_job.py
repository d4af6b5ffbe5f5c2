"""One rank of a tensor-parallel group of vLLM engines: what `test_vllm_tp` starts twice and compares."""

import asyncio
import json
import sys
from pathlib import Path

import torch.distributed as dist

from tests.support.vllm_parts import make_engine, params, prompt, vllm_policy


def requests_of(rank):
    """Rank 0 asks for three generations, a tool call apart; rank 1 for two at once, then for nothing."""
    if rank:
        return [[(prompt(5, 8), params(4, seed=8)), (prompt(9, 9), params(40, seed=9, top_p=0.9))]]
    return [[(prompt(7 + n, n), params(6, seed=n, temperature=0.8))] for n in range(3)]


def roll_out(engine, rank):
    """Return the generations of this rank; the other rank's are none of its business."""

    async def run():
        found = []
        for together in requests_of(rank):
            generations = await asyncio.gather(*(engine.generate(tokens, each) for tokens, each in together))
            await asyncio.sleep(0.2)  # a tool call: this rank has no requests, and the other needs it all the same
            found += [{"tokens": g.token_ids, "logprobs": g.logprobs, "entropies": g.entropies} for g in generations]
        return found

    return asyncio.run(run())


def main():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    engine = make_engine(vllm_policy(), tensor_parallel_size=2)
    engine.load_weights(vllm_policy().build_model().named_parameters(), 0)
    first = roll_out(engine, rank)
    engine.sleep()
    # Ranks that have slept are free to wait for each other in any way.
    dist.barrier()
    engine.load_weights(vllm_policy(seed=1).build_model().named_parameters(), 1)
    second = roll_out(engine, rank)
    engine.settle()
    unfinished = engine._core.num_unfinished()
    engine.close()
    result = {"first": first, "second": second, "unfinished": unfinished, "source": engine.entropy_source}
    Path(sys.argv[1]).write_text(json.dumps(result), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
