"""Two ranks and one pool of scripted servers: rank 0 publishes, both generate. No vLLM needed."""

import pytest
import torch

from aepo_lightning.errors import EngineError
from tests.support.ranks import run_ranks
from tests.support.vllm_parts import one, prompt, vllm_policy
from tests.support.vllm_server_fake import FakeServer, serve
from tests.support.vllm_server_parts import server_engine


@pytest.fixture
def two():
    with serve(FakeServer(), FakeServer()) as servers:
        yield servers


def _job(rank, urls):
    engine = server_engine(*urls)
    model = vllm_policy(seed=1).build_model()
    taken = []
    engine.load_weights((taken.append(name) or (name, tensor) for name, tensor in model.named_parameters()), 3)
    tokens = one(engine, prompt(9, rank)).token_ids
    with pytest.raises(EngineError, match="has no weight named 'unknown'") as caught:
        engine.load_weights([("unknown", torch.zeros(1)), *model.named_parameters()], 4)
    engine.close()
    return len(taken), len(tokens), str(caught.value)


@pytest.mark.distributed
def test_rank_zero_publishes_and_all_ranks_use_what_it_published(two):
    def job(rank):
        torch.distributed.init_process_group("gloo")
        try:
            return _job(rank, [server.url for server in two])
        finally:
            torch.distributed.destroy_process_group()

    first, second = run_ranks(job)
    assert first == second
    assert [server.paths.count("/start_weight_update") for server in two] == [1, 1]
    assert sum(len(server.requests) for server in two) == 2
