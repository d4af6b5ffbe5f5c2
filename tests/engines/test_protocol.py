"""The laws of `contracts.engine.Engine`, the same for a naive engine written here and the library's."""

import asyncio
import math

import pytest
import torch

from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.generation import FinishReason, Generation
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.engines.sampling import counter_uniforms
from aepo_lightning.errors import EngineError
from tests.support.builders import reference_scores
from tests.support.extras import needs
from tests.support.vllm_parts import (
    CLOSE,
    assert_exact,
    biased,
    generate,
    make_engine,
    one,
    params,
    prompt,
    vllm_policy,
)
from tests.support.vllm_server_parts import server_engine, shared_server

pytestmark = pytest.mark.filterwarnings("ignore:::vllm", "ignore::DeprecationWarning", "ignore::FutureWarning")

MAX_MODEL_LEN = 160
SEARCH = "ab<search>q</search>"


class NaiveEngine:
    """Computes every token from all that precede it, one after the other: slow, and short enough to be believed."""

    def __init__(self, policy):
        self.max_model_len = MAX_MODEL_LEN
        self._tokenizer = policy.tokenizer
        self._model = policy.build_model()

    async def generate(self, prompt_ids, params, on_probe=None):
        if not 0 < len(prompt_ids) < self.max_model_len:
            raise EngineError(f"A prompt must have between 1 and {self.max_model_len - 1} tokens.")
        tokens, reason = list(prompt_ids), None
        while reason is None:
            await asyncio.sleep(0)
            tokens.append(self._draw(tokens, params))
            reason = self._reason(tokens, len(prompt_ids), params)
            if on_probe and (reason or len(tokens) - len(prompt_ids) == params.num_probe_tokens):
                on_probe(self._generation(tokens, len(prompt_ids), params, reason or FinishReason.LENGTH))
                on_probe = None
        return self._generation(tokens, len(prompt_ids), params, reason)

    @torch.no_grad()
    def _draw(self, tokens, params):
        logits = self._model(input_ids=torch.tensor([tokens])).logits[0, -1].double()
        if params.temperature == 0:
            return int(logits.argmax())
        probabilities = torch.softmax(logits / params.temperature, -1).tolist()
        uniform = float(counter_uniforms(torch.tensor([params.seed]), torch.tensor([len(tokens)]))[0])
        for token, probability in enumerate(probabilities):
            uniform -= probability
            if uniform < 0:
                return token
        return len(probabilities) - 1

    def _reason(self, tokens, start, params):
        text = self._tokenizer.decode(tokens[start:], clean_up_tokenization_spaces=False)
        if tokens[-1] == self._tokenizer.eos_token_id:
            return FinishReason.EOS
        if any(stop in text for stop in params.stop):
            return FinishReason.STOP
        is_full = len(tokens) - start == params.max_tokens or len(tokens) == self.max_model_len
        return FinishReason.LENGTH if is_full else None

    def _generation(self, tokens, start, params, reason):
        logprobs, entropies = reference_scores(self._model, tokens, start, params.temperature or 1.0)
        return Generation(token_ids=tokens[start:], logprobs=logprobs, entropies=entropies, finish_reason=reason)

    def load_weights(self, weights, _):
        weights = dict(weights)
        if self._model.config.tie_word_embeddings:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        self._model.load_state_dict(weights)

    def sleep(self):
        pass

    def close(self):
        pass


class Home:
    """Makes engines of one kind; the heavy ones are made once and get the weights of each policy."""

    def __init__(self, kind, request, folder):
        self._kind = kind
        self._request = request
        self._folder = folder
        self._shared = {}

    def engine(self, policy):
        key = policy.config.tie_word_embeddings
        if self._kind == "vllm_server" and key:
            pytest.skip("the one server of the test run has an untied model; test_vllm_server_extension has a tied one")
        if self._kind in ("naive", "transformers"):
            return self._make(policy)
        if key not in self._shared:
            self._shared[key] = self._make(policy)
        self._shared[key].load_weights(policy.build_model().named_parameters(), 0)
        return self._shared[key]

    def close(self):
        for engine in self._shared.values():
            engine.close()

    def _make(self, policy):
        if self._kind == "naive":
            return NaiveEngine(policy)
        if self._kind == "transformers":
            return TransformersEngine(policy, max_num_seqs=16, max_model_len=MAX_MODEL_LEN)
        if self._kind == "vllm":
            return make_engine(policy)
        return server_engine(shared_server(self._request, self._folder)[0], policy=policy)


@pytest.fixture(scope="module", params=["naive", "transformers", "vllm", "vllm_server"])
def home(request, tmp_path_factory):
    if request.param.startswith("vllm"):
        needs("vllm", "vllm")
    home = Home(request.param, request, tmp_path_factory.mktemp("server"))
    yield home
    home.close()


@pytest.fixture(scope="module")
def policy():
    return vllm_policy()


@pytest.fixture
def engine(home, policy):
    return home.engine(policy)


def test_every_engine_satisfies_the_protocol(engine):
    assert isinstance(engine, Engine)
    assert engine.max_model_len == MAX_MODEL_LEN


@pytest.mark.parametrize("temperature", [1.0, 0.6], ids=str)
def test_scores_are_those_of_a_plain_forward_pass(engine, policy, temperature):
    requests = [(prompt(n, n), params(6, seed=n, temperature=temperature)) for n in (1, 9, 40)]
    model = policy.build_model()
    for (tokens, _), generation in zip(requests, generate(engine, requests), strict=True):
        assert_exact(model, tokens, generation, temperature)


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_tokens_are_those_of_the_naive_engine(engine, policy, temperature):
    requests = [(prompt(n, n), params(10, seed=2**62 + n, temperature=temperature)) for n in (1, 9, 40)]
    expected = generate(NaiveEngine(policy), requests)
    for ours, theirs in zip(generate(engine, requests), expected, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.finish_reason is theirs.finish_reason
        assert ours.logprobs == pytest.approx(theirs.logprobs, **CLOSE)


def test_the_same_seed_gives_the_same_tokens_whatever_else_is_in_the_batch(engine):
    requests = [(prompt(3 + n, n), params(6, seed=n)) for n in range(6)]
    alone = [one(engine, *request).token_ids for request in requests]
    assert [generation.token_ids for generation in generate(engine, requests)] == alone
    assert len({tuple(tokens) for tokens in alone}) == 6


def test_a_sequence_that_is_split_into_requests_is_the_same_sequence(engine):
    whole = one(engine, prompt(9), params(8, seed=5)).token_ids
    head = one(engine, prompt(9), params(3, seed=5)).token_ids
    assert head + one(engine, prompt(9) + head, params(5, seed=5)).token_ids == whole


@pytest.mark.parametrize(
    ("text", "stop", "max_tokens", "expected", "reason"),
    [
        ("ab</x>", ("</x>",), 40, "b</x>", FinishReason.STOP),
        (SEARCH, ("</python>", "</search>"), 40, "b<search>q</search>", FinishReason.STOP),
        ("ab</x>", ("</x>",), 5, "b</x>", FinishReason.STOP),
        ("ab</x>", ("</x>",), 4, "b</x", FinishReason.LENGTH),
        ("ab<eos>", (), 9, "b<eos>", FinishReason.EOS),
        ("ab<eos>", (), 1, "b", FinishReason.LENGTH),
    ],
    ids=["stop_over_tokens", "stop_by_one_token", "stop_on_the_last_token", "before_the_stop", "eos", "length"],
)
def test_a_generation_ends_with_the_token_that_ends_it(home, text, stop, max_tokens, expected, reason):
    policy = biased(text)
    each = params(max_tokens, stop=stop, temperature=0.0)
    generation = one(home.engine(policy), policy.ids[:1], each)
    assert policy.tokenizer.decode(generation.token_ids) == expected
    assert generation.finish_reason is reason
    assert len(generation.logprobs) == len(generation.entropies) == len(generation.token_ids)


def test_a_generation_ends_when_the_context_is_full(home):
    policy = biased("ab")
    generation = one(home.engine(policy), policy.ids * 70, params(1000))
    assert len(generation.token_ids) == MAX_MODEL_LEN - 140
    assert generation.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(("num_probe_tokens", "expected"), [(1, 1), (3, 3), (6, 6), (20, 6)], ids=str)
def test_the_probe_comes_once_with_the_first_tokens_and_before_the_result(engine, num_probe_tokens, expected):
    probes = []

    async def run():
        each = params(6, num_probe_tokens=num_probe_tokens)
        task = asyncio.create_task(engine.generate(prompt(6), each, lambda probe: probes.append((probe, task.done()))))
        return await task

    whole = asyncio.run(run())
    ((probe, was_done),) = probes
    assert not was_done
    assert probe.token_ids == whole.token_ids[:expected]
    assert probe.logprobs == pytest.approx(whole.logprobs[:expected], **CLOSE)
    assert probe.entropies == pytest.approx(whole.entropies[:expected], **CLOSE)


def test_a_probe_whose_generation_ends_before_comes_once_as_well(home):
    policy = biased(SEARCH)
    probes = []
    each = params(40, stop=("</search>",), temperature=0.0, num_probe_tokens=30)
    whole = one(home.engine(policy), policy.ids[:1], each, probes.append)
    assert [probe.token_ids for probe in probes] == [whole.token_ids]
    assert probes[0].finish_reason is FinishReason.STOP


@pytest.mark.parametrize("length", [0, MAX_MODEL_LEN, MAX_MODEL_LEN + 9], ids=["empty", "no_room", "too_long"])
def test_a_prompt_that_does_not_fit_is_refused(engine, length):
    with pytest.raises(EngineError, match="must have between 1 and 159 tokens"):
        one(engine, [3] * length)


def test_the_longest_prompt_that_fits_yields_one_token(engine):
    assert len(one(engine, [3] * (MAX_MODEL_LEN - 1)).token_ids) == 1


def test_cancelling_leaves_nothing_running_and_the_others_alone(engine, policy):
    expected = one(engine, prompt(6), params(8, seed=4)).token_ids

    async def run():
        other = asyncio.create_task(engine.generate(prompt(6), params(8, seed=4)))
        doomed = [asyncio.create_task(engine.generate(prompt(6), params(150, seed=s))) for s in range(20)]
        for _ in range(3):
            await asyncio.sleep(0)
        for task in doomed:
            task.cancel()
        results = await asyncio.gather(*doomed, return_exceptions=True)
        # One that samples its end at once may be there before it is cancelled.
        assert [each for each in results if not isinstance(each, asyncio.CancelledError | Generation)] == []
        assert any(isinstance(each, asyncio.CancelledError) for each in results)
        tokens = (await other).token_ids
        for _ in range(20):
            await asyncio.sleep(0)
        return tokens, len(asyncio.all_tasks())

    assert asyncio.run(run()) == (expected, 1)  # the one task is the test
    engine.load_weights(policy.build_model().named_parameters(), 1)  # refused while requests run
    assert one(engine, prompt(6), params(8, seed=4)).token_ids == expected


@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
def test_published_weights_change_the_scores_and_no_old_prefix_survives(home, is_tied):
    tokens = prompt(101)
    engine = home.engine(vllm_policy(tie_word_embeddings=is_tied))
    first = one(engine, tokens)
    for seed in (1, 0):
        model = vllm_policy(seed=seed, tie_word_embeddings=is_tied).build_model()
        engine.load_weights(model.named_parameters(), seed)
        after = one(engine, tokens)
        assert_exact(model, tokens, after)
        assert (after.token_ids == first.token_ids) == (seed == 0)


def test_sampled_tokens_follow_the_distribution(home):
    if home._kind == "naive":
        pytest.skip("it draws with the numbers that define the others' tokens")
    engine = home.engine(vllm_policy())
    generations = generate(engine, [(prompt(6), params(1, seed=seed)) for seed in range(300)])
    surprise = torch.tensor([-generation.logprobs[0] for generation in generations], dtype=torch.float64)
    # The mean of -log p over samples of p is the entropy; four standard errors, with fixed seeds.
    error = surprise.std().item() / math.sqrt(len(surprise))
    assert surprise.mean().item() == pytest.approx(generations[0].entropies[0], abs=4 * error)


def test_closing_twice_is_allowed(home, policy):
    engine = home.engine(policy)
    engine.close()
    engine.close()
