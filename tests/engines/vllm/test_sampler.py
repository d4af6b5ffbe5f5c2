"""Draws of our own inside vLLM: the first runner's sampler with a fake runner, the second's real class in part."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.engines.sampling import counter_uniforms, penalise_repetition, sample_tokens
from aepo_lightning.engines.vllm.entropy import unpack_entropy
from aepo_lightning.engines.vllm.sampler import draw_arguments, install, remove
from aepo_lightning.errors import EngineError
from tests.support.extras import needs

# vLLM warns about its own imports; its name without the package is what an environment without the extra has.
pytestmark = pytest.mark.filterwarnings("ignore:::vllm", "ignore::DeprecationWarning", "ignore::FutureWarning")
needs("vllm", "vllm")

VOCAB = 50
NATIVE = 7
"""What vLLM's own sampler draws in these tests."""
OURS = SamplingParams(max_tokens=1, seed=2**62 + 1, temperature=0.7, top_p=0.9, top_k=20)
GREEDY = SamplingParams(max_tokens=1, temperature=0.0)
NEARLY_GREEDY = SamplingParams(max_tokens=1, temperature=1e-3)


@dataclass
class Native:
    """The fields of vLLM's own sampling parameters that are read."""

    temperature: float
    extra_args: dict | None = None
    repetition_penalty: float = 1.0


def native(params):
    return Native(1.0, draw_arguments(params), params.repetition_penalty)


class First:
    """A first model runner with one running request per entry of `natives`."""

    def __init__(self, natives):
        from vllm.v1.sample.sampler import Sampler

        self.sampler = Sampler()
        self.requests = {str(row): SimpleNamespace(sampling_params=each) for row, each in enumerate(natives)}
        self.input_batch = SimpleNamespace(req_ids=list(self.requests))
        self.seq_lens = torch.arange(100, 100 + len(natives) + 3, dtype=torch.int32)
        self.calls = []

    def sample(self, logits, num_top=0, **arguments):
        rows = range(len(logits))
        metadata = SimpleNamespace(
            max_num_logprobs=num_top,
            calls=self.calls,
            no_penalties=False,
            prompt_token_ids=torch.tensor([[row, VOCAB] for row in rows]),  # padded by the size of the vocabulary
            output_token_ids=[[row + 1, row + 1] for row in rows],
            presence_penalties=torch.zeros(len(rows)),
            frequency_penalties=torch.zeros(len(rows)),
            repetition_penalties=torch.tensor(
                [each.sampling_params.repetition_penalty for each in self.requests.values()]
            ),
        )
        return self.sampler(logits=logits, sampling_metadata=metadata, **arguments)


@pytest.fixture
def first(monkeypatch):
    from vllm.v1.outputs import SamplerOutput
    from vllm.v1.sample.sampler import Sampler

    def forward(_, logits, sampling_metadata, predict_bonus_token=False):
        sampling_metadata.calls.append(len(logits))
        logits.zero_()
        return SamplerOutput(torch.full((len(logits), 1), NATIVE, dtype=torch.int32), None)

    def make(natives):
        runner = First(natives)
        install(runner)
        return runner

    monkeypatch.setattr(Sampler, "forward", forward)
    return make


def second(natives):
    """A second model runner: the real class, with stubs for what it computes by Triton kernels."""
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    sampler = Sampler.__new__(Sampler)
    sampler.logprobs_mode, sampler.compute_nans, sampler.return_sampling_mask = "raw_logprobs", False, False
    sampler.trace_replay_state, sampler.logits_processors = None, []
    sampler.needs_logits_processing = np.zeros(8, dtype=bool)
    ignore = SimpleNamespace(add_request=lambda *_: False, max_num_token_ids=lambda _: 0)
    sampler.thinking_budget_state = sampler.logprob_token_ids_state = ignore
    sampler.sampling_states = SimpleNamespace(add_request=lambda *_: False, max_num_logprobs=lambda _: 2)
    sampler.req_states = SimpleNamespace(prefill_len=SimpleNamespace(gpu=None))
    sampler.sample = lambda logits, *_, **__: (torch.full((len(logits),), NATIVE), logits.zero_())
    runner = SimpleNamespace(sampler=sampler)
    install(runner)
    for row, each in enumerate(natives):
        sampler.add_request(7 - row, each)
    return runner


@pytest.fixture
def no_kernels(monkeypatch):
    module = "vllm.v1.worker.gpu.sample.sampler"
    monkeypatch.setattr(f"{module}.compute_topk_scores", lambda *_, **__: None)
    monkeypatch.setattr(f"{module}.get_num_sampled_and_rejected", lambda *_: (None, None))


def second_batch(num_rows):
    """Request `row` lives in state slot 7 - row; its last input token stands at position 99 + row."""
    index = np.arange(7, 7 - num_rows, -1)
    return SimpleNamespace(
        idx_mapping_np=index,
        idx_mapping=torch.from_numpy(index),
        expanded_idx_mapping=torch.from_numpy(index),
        cu_num_logits_np=None,
        cu_num_logits=None,
        expanded_local_pos=None,
        positions=torch.arange(99, 99 + 2 * num_rows).repeat_interleave(2),
        logits_indices=2 * torch.arange(num_rows) + 1,
        input_ids=torch.zeros(4 * num_rows),
        seq_lens_cpu_upper_bound=torch.zeros(num_rows),
        seq_lens=torch.zeros(num_rows),
        num_reqs=num_rows,
    )


def logits_of(num_rows, seed=0):
    return 2 * torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def expected(logits, params, position, seen=()):
    """One row drawn as the embedded engine draws it."""
    return sample_tokens(
        logits[None],
        torch.tensor([float(params.temperature)]),
        torch.tensor([float(params.top_p)]),
        torch.tensor([params.top_k]),
        counter_uniforms(torch.tensor([params.seed]), torch.tensor([position])),
        drawn_from=penalise_repetition(logits[None], [seen], [params.repetition_penalty]) if seen else None,
    )


def assert_row(output, row, want, token=None):
    token = want.token_ids.item() if token is None else token
    ids, logprobs, codes = output.logprobs_tensors[:3]
    assert output.sampled_token_ids[row].tolist() == [token]
    top = want.all_logprobs[0].topk(ids.shape[1] - 1)
    assert ids[row].tolist() == [token, *top.indices.tolist()]
    torch.testing.assert_close(logprobs[row, 0], want.all_logprobs[0, token])
    torch.testing.assert_close(logprobs[row, 1:], top.values)
    # The packing is finer than the float32 number that was packed.
    assert unpack_entropy(codes[row].item()) == pytest.approx(want.entropies.item(), rel=1e-6)


def test_our_rows_are_drawn_as_in_the_embedded_engine_and_vllm_draws_nothing(first):
    # More rows than are computed at once.
    each = [OURS, GREEDY, NEARLY_GREEDY] * 15
    runner, logits = first([native(params) for params in each]), logits_of(45)
    output = runner.sample(logits.clone(), num_top=2)
    for row, params in enumerate(each):
        assert_row(output, row, expected(logits[row], params, 100 + row))
    assert output.sampled_token_ids.dtype == torch.int32
    assert runner.calls == []


def test_tokens_that_were_there_are_less_likely_and_scores_stay_those_of_the_policy(first):
    each = [replace(params, repetition_penalty=9.0) for params in (GREEDY, OURS)] + [OURS]
    runner, logits = first([native(params) for params in each]), logits_of(3).abs()
    logits[0, 1] = 99.0  # seen, and 11 with the penalty
    logits[0, 2] = 12.0
    output = runner.sample(logits.clone(), num_top=2)
    assert output.sampled_token_ids[0].item() == 2
    for row, params in enumerate(each):
        seen = (row, row + 1) if params.repetition_penalty > 1 else ()
        assert_row(output, row, expected(logits[row], params, 100 + row, seen))


def test_the_second_runner_is_asked_for_its_penalties(no_kernels):
    asked = []

    def apply(scores, context):
        asked.append((context.idx_mapping_np.tolist(), context.input_ids.shape))
        scores[0, 3] = 99.0
        return scores

    runner, logits = second([native(replace(GREEDY, repetition_penalty=2.0)), native(GREEDY)]), logits_of(2)
    runner.sampler.penalties_state = SimpleNamespace(apply=apply, add_request=lambda *_: False)
    given = logits.clone()
    output = runner.sampler(given, second_batch(2))
    assert asked == [([7, 6], (2,))]
    assert output.sampled_token_ids[0].item() == 3
    assert_row(output, 1, expected(logits[1], GREEDY, 101))
    torch.testing.assert_close(output.logprobs_tensors[1][0, 0], logits[0].log_softmax(-1)[3])
    torch.testing.assert_close(given, logits)


def test_rows_without_our_mark_keep_vllms_token_and_have_scores_at_their_temperature(first):
    runner, logits = first([native(OURS), Native(0.5), Native(0.0, {"other": 1})]), logits_of(3)
    output = runner.sample(logits.clone())
    assert runner.calls == [3]
    assert_row(output, 0, expected(logits[0], OURS, 100))
    for row, temperature in ((1, 0.5), (2, 0.0)):
        want = expected(logits[row], SamplingParams(max_tokens=1, temperature=temperature), 100 + row)
        assert_row(output, row, want, token=NATIVE)


def test_without_logprobs_tokens_are_drawn_and_nothing_is_listed(first):
    runner, logits = first([native(OURS)]), logits_of(1)
    output = runner.sample(logits.clone(), num_top=None)
    assert output.logprobs_tensors is None
    assert output.sampled_token_ids.tolist() == expected(logits[0], OURS, 100).token_ids[:, None].tolist()


@pytest.mark.parametrize(
    ("num_rows", "arguments"), [(2, {}), (1, {"predict_bonus_token": True})], ids=["warm_up", "bonus_token"]
)
def test_passes_that_are_not_one_row_per_request_are_vllms(first, num_rows, arguments):
    runner = first([native(OURS)])
    assert runner.sample(logits_of(num_rows), **arguments).sampled_token_ids.tolist() == [[NATIVE]] * num_rows
    assert runner.calls == [num_rows]


def test_removing_gives_vllm_its_draws_back_and_both_may_be_repeated(first):
    runner = first([native(OURS)])
    for change in (install, remove, remove):
        change(runner)
    assert runner.sample(logits_of(1)).sampled_token_ids.tolist() == [[NATIVE]]
    install(runner)
    assert runner.sample(logits_of(1)).logprobs_tensors is not None


def test_the_second_runner_draws_and_reports_the_same(no_kernels):
    runner, logits = second([native(OURS), Native(0.5), native(GREEDY)]), logits_of(3)
    given = logits.clone()
    output = runner.sampler(given, second_batch(3))
    assert_row(output, 0, expected(logits[0], OURS, 100))
    assert_row(output, 1, expected(logits[1], SamplingParams(max_tokens=1, temperature=0.5), 101), token=NATIVE)
    assert_row(output, 2, expected(logits[2], GREEDY, 102))
    torch.testing.assert_close(given, logits)


def test_the_second_runners_warm_up_and_its_removal_are_vllms(no_kernels):
    runner = second([native(OURS)])
    assert runner.sampler(logits_of(2), second_batch(2)).sampled_token_ids.tolist() == [[NATIVE]] * 2
    original = type(runner.sampler).__mro__[1]
    remove(runner)
    assert type(runner.sampler) is original
    assert runner.sampler(logits_of(1), second_batch(1)).sampled_token_ids.tolist() == [[NATIVE]]


@pytest.mark.parametrize("runner", [SimpleNamespace(), SimpleNamespace(sampler=object())], ids=["none", "other"])
def test_an_unknown_sampler_is_refused(runner):
    with pytest.raises(EngineError, match=r"`model_runner\.sampler` must be .* but got (NoneType|object)\."):
        install(runner)
