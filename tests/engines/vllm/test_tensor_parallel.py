"""Tensor-parallel groups of vLLM engines over two gloo ranks: the exchange alone, and one model over both."""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
import torch.distributed as dist

from aepo_lightning.engines import TransformersEngine
from aepo_lightning.engines.vllm.group import GroupExchange, Lockstep, StepNews
from aepo_lightning.errors import EngineError
from tests.support.paths import ROOT
from tests.support.ranks import _free_port, run_ranks
from tests.support.vllm_parts import CLOSE, generate, vllm_policy
from tests.support.vllm_tp_job import requests_of

pytestmark = pytest.mark.distributed
JOB_TIMEOUT_S = 240


def exchange_names(rank):
    dist.init_process_group("gloo")
    exchange = GroupExchange(2)
    found = [[each.aborted for each in exchange(StepNews(aborted=(f"{rank}:{turn}",)))] for turn in range(3)]
    dist.destroy_process_group()
    return found


def test_each_group_of_consecutive_ranks_exchanges_within_itself():
    found = run_ranks(exchange_names, world=4)
    for rank, rounds in enumerate(found):
        first = rank // 2 * 2
        assert rounds == [[(f"{first}:{turn}",), (f"{first + 1}:{turn}",)] for turn in range(3)]


class Idle:
    """A stepper without requests."""

    def add(self, name, prompt_ids, params):
        raise AssertionError((name, prompt_ids, params))

    def abort(self, name):
        raise AssertionError(name)

    def step(self):
        raise AssertionError("a step without requests")

    def num_unfinished(self):
        return 0


def be_silent(rank):
    dist.init_process_group("gloo")
    exchange = GroupExchange(2, timeout_s=5.0)
    exchange(StepNews())
    if rank:
        time.sleep(8)
        return ""
    try:
        Lockstep(Idle(), exchange).step()
    except EngineError as error:
        return str(error)
    return "no error"


@pytest.mark.slow
def test_a_silent_rank_does_not_keep_the_others_waiting_forever():
    assert "The tensor-parallel group lost a rank, or one was silent" in run_ranks(be_silent)[0]


def run_job(folder):
    """Run the job on two ranks in processes of their own, which import vLLM afresh, and return their results."""
    port = str(_free_port())
    processes = []
    for rank in range(2):
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        with (folder / f"log{rank}").open("w", encoding="utf-8") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.support.vllm_tp_job", str(folder / f"rank{rank}.json")],
                    cwd=ROOT,
                    env=os.environ | variables | {"MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
                    stdout=log,
                    stderr=log,
                )
            )
    try:
        codes = [process.wait(JOB_TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 0], (folder / "log0").read_text(encoding="utf-8")[-2000:]
    return [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="needs the `vllm` extra")
def test_two_ranks_hold_one_model_and_each_gets_what_the_embedded_engine_generates(tmp_path):
    results = run_job(tmp_path)
    for seed, name in enumerate(("first", "second")):
        embedded = TransformersEngine(vllm_policy(seed=seed), max_num_seqs=8, max_model_len=160)
        for rank, result in enumerate(results):
            expected = generate(embedded, [each for together in requests_of(rank) for each in together])
            assert [found["tokens"] for found in result[name]] == [each.token_ids for each in expected]
            for found, each in zip(result[name], expected, strict=True):
                assert found["logprobs"] == pytest.approx(each.logprobs, **CLOSE)
                assert found["entropies"] == pytest.approx(each.entropies, **CLOSE)
    for result in results:
        assert result["unfinished"] == 0
        assert result["source"] == "exact"
