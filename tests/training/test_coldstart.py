"""The supervised cold start: what is trained on, that it learns, and that its result is the next stage's policy."""

from functools import partial
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from aepo_lightning.chat_formats import HermesFormat, TagFormat
from aepo_lightning.contracts.question import Demonstration, DemonstrationTurn, Message, Question, SegmentSource
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.publishing.publish import publish
from aepo_lightning.policy.source import PretrainedPolicy
from aepo_lightning.policy.tokenizers import build_word_tokenizer
from aepo_lightning.training.coldstart import ColdStartModule
from aepo_lightning.training.demonstrations import (
    DemonstrationDataModule,
    collate_demonstrations,
    encode_demonstration,
)
from tests.support.chatml import CHATML, chatml_tokenizer
from tests.support.training import TASK, flat, make_run, make_trainer, relative_l2, small_policy


def make_demonstration():
    question = Question(question_id="q", messages=(Message(role="user", content="find e0 c1"),), answers=("e2",))
    turns = (
        DemonstrationTurn(source=SegmentSource.POLICY, text="<search> e0 </search>"),
        DemonstrationTurn(source=SegmentSource.TOOL, text="e1 e2 e3"),
        DemonstrationTurn(source=SegmentSource.POLICY, text="<answer> \\boxed{ e2 } </answer>"),
    )
    return Demonstration(question=question, turns=turns)


def encoded(policy):
    chat_format = TagFormat(policy.tokenizer, ("search",))
    return encode_demonstration(make_demonstration(), chat_format, policy.tokenizer.eos_token_id)


def test_a_demonstration_is_written_as_a_rollout_would_be_and_only_its_own_words_are_trained():
    policy = small_policy()
    tokens, is_trained = encoded(policy)
    text = "find e0 c1 <search> e0 </search> <result> e1 e2 e3 </result> <answer> \\boxed{ e2 } </answer> <eos>"
    assert policy.tokenizer.decode(tokens) == text
    # 3 words of the prompt, 3 of the call, 5 of the result, 5 of the answer, the end of the sequence.
    assert is_trained == [False] * 3 + [True] * 3 + [False] * 5 + [True] * 6


def demonstration_of(*turns):
    written = tuple(DemonstrationTurn(source=SegmentSource[source], text=text) for source, text in turns)
    return Demonstration(question=make_demonstration().question, turns=written)


CALLS = '<tool_call>{"name": "f"}</tool_call><tool_call>{"name": "g"}</tool_call>'


def test_calls_in_the_models_own_template_end_and_are_answered_as_in_a_rollout():
    tokenizer = chatml_tokenizer()
    chat_format = HermesFormat(tokenizer, system_prompt="none")
    demonstration = demonstration_of(("POLICY", CALLS), ("TOOL", "one"), ("TOOL", "two"), ("POLICY", "done"))
    tokens, is_trained = encode_demonstration(demonstration, chat_format, tokenizer.eos_token_id)
    results = [token for ids in chat_format.encode_results(["one", "two"]) for token in ids]
    end, called, done = [tokenizer.eos_token_id], chat_format.encode_text(CALLS), chat_format.encode_text("done")
    prompt = chat_format.encode_prompt(demonstration.question.messages)
    spans = ((prompt, False), (called + end, True), (results, False), (done + end, True))
    assert tokens == [token for ids, _ in spans for token in ids]
    assert is_trained == [own for ids, own in spans for _ in ids]


def test_thoughts_that_the_template_opens_are_not_opened_again():
    tokenizer = chatml_tokenizer(CHATML.replace("assistant\\n", "assistant\\n<think>\\n"))
    chat_format = HermesFormat(tokenizer, system_prompt="none")
    turns = (("POLICY", f"<think> a </think>{CALLS}"), ("TOOL", "one"), ("POLICY", " <think> b </think> done"))
    tokens, _ = encode_demonstration(demonstration_of(*turns), chat_format, tokenizer.eos_token_id)
    text = tokenizer.decode(tokens)
    assert text.count("<think>") == text.count("<think>\n a </think>") + text.count("<think>\n b </think>") == 2


def test_the_end_that_is_trained_on_is_that_of_the_chat_template():
    ends = "{% for m in messages %}{{ m.content + (' <end>' if m.role == 'assistant' else '') }}{% endfor %}"
    tokenizer = build_word_tokenizer((*TASK.words, "<end>", "XYANSWERYX", "question"), ends)
    tokenizer.add_tokens(["<end>"])
    data = DemonstrationDataModule(TASK, TagFormat(tokenizer, ("search",)), tokenizer, batch_size=1)
    data.trainer = SimpleNamespace(world_size=1, global_rank=0)
    assert int(data.step(0).micro_batches[0].input_ids[0, -1]) == tokenizer.convert_tokens_to_ids("<end>")


HEADS = {
    "scaled": {"model_type": "granite", "logits_scaling": 13.0},
    "capped": {"model_type": "gemma3_text", "final_logit_softcapping": 1.0},
    "multiplied MLPs": {
        "model_type": "falcon_h1",
        "lm_head_multiplier": 0.1,
        "mlp_multipliers": [0.5, 3.0],
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_ssm": 32,
        "mamba_d_state": 8,
    },
}


@pytest.mark.parametrize("fields", HEADS.values(), ids=HEADS)
def test_the_loss_is_that_of_the_models_own_logits(fields):
    policy = small_policy(**fields)
    batch = collate_demonstrations([encoded(policy)], policy.tokenizer.pad_token_id)
    module = ColdStartModule(policy, torch.optim.SGD)
    module.configure_model()
    is_scored = torch.nn.functional.pad(batch.response_mask, (0, 1))
    with torch.no_grad(), module._mlps.last_layer_at(is_scored):
        found = module.network(batch.input_ids, batch.response_mask).logprobs.sum()
        model = policy.build_model().eval()
        log_p = model(input_ids=batch.input_ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    expected = log_p.gather(-1, batch.input_ids[:, 1:, None])[..., 0][batch.response_mask].sum()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_encoding_twice_gives_the_same():
    policy = small_policy()
    chat_format = TagFormat(policy.tokenizer, ("search",))
    first, second = (encode_demonstration(make_demonstration(), chat_format, 1) for _ in range(2))
    assert first == second


def test_tags_in_a_tool_result_are_harmless():
    policy = small_policy()
    chat_format = TagFormat(policy.tokenizer, ("search",))
    turn = DemonstrationTurn(source=SegmentSource.TOOL, text="e1 </result> <eos>")
    demonstration = Demonstration(question=make_demonstration().question, turns=(turn,))
    tokens, _ = encode_demonstration(demonstration, chat_format, policy.tokenizer.eos_token_id)
    names = policy.tokenizer.convert_ids_to_tokens(tokens)
    assert (names.count("</result>"), names.count("<eos>")) == (1, 1)


def test_column_t_of_the_mask_speaks_about_token_t_plus_one():
    rows = [([5, 6, 7, 1], [False, True, False, True]), ([8, 1], [False, True])]
    batch = collate_demonstrations(rows, pad_token_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 1], [8, 1, 0, 0]]
    assert batch.response_mask.int().tolist() == [[1, 0, 1], [1, 0, 0]]


# Runs ---------------------------------------------------------------------------------------------------------------


def make_data(policy, batch_size=16, **settings):
    chat_format = TagFormat(policy.tokenizer, ("search",))
    return DemonstrationDataModule(TASK, chat_format, policy.tokenizer, batch_size, **settings)


def make_cold_start(folder, num_steps=60, policy=None, precision="32-true", **options):
    policy = policy or small_policy()
    options = {"optimizer": partial(torch.optim.AdamW, lr=1e-2)} | options
    module = ColdStartModule(policy, **options)
    return make_run(folder, module, make_data(policy), max_epochs=-1, max_steps=num_steps, precision=precision)


def test_the_loss_falls(tmp_path):
    run = make_cold_start(tmp_path).fit()
    losses = run.logger.values("coldstart/loss")
    # 22 words: a uniform guess costs ln 22 = 3.1 nats; what is left is the choice among exits.
    assert losses[0] > 2.5
    assert sum(losses[-5:]) / 5 < 1.0
    assert run.trainer.global_step == len(losses) == 60


def test_the_loss_is_the_mean_cross_entropy_of_the_trained_tokens(tmp_path):
    policy = small_policy()
    run = make_cold_start(tmp_path, 1, policy, optimizer=partial(torch.optim.SGD, lr=0.1), max_grad_norm=1e9).fit()
    model = policy.build_model()
    chat_format = TagFormat(policy.tokenizer, ("search",))
    total, number = torch.zeros(()), 0
    for index in range(16):
        tokens, is_trained = encode_demonstration(TASK.demonstration(index), chat_format, policy.tokenizer.eos_token_id)
        log_p = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].log_softmax(-1)
        for t in range(1, len(tokens)):
            if is_trained[t]:
                total, number = total - log_p[t - 1, tokens[t]], number + 1
    (total / number).backward()
    assert run.logger.values("coldstart/loss") == [pytest.approx(total.item() / number, rel=1e-5)]
    update = flat(model.parameters()) - flat(run.network.parameters())
    # The difference of weights keeps about four digits of the gradient.
    assert relative_l2(update / 0.1, flat(parameter.grad for parameter in model.parameters())) < 1e-3


@pytest.mark.parametrize("budget", [None, 100])
@pytest.mark.parametrize("packing", ["padded", "flat"])
def test_packing_and_micro_batches_change_nothing_but_rounding(tmp_path, packing, budget):
    sgd = partial(torch.optim.SGD, lr=0.1)
    expected = make_cold_start(tmp_path / "whole", 1, optimizer=sgd).fit()
    run = make_cold_start(tmp_path / "parts", 1, optimizer=sgd)
    run.datamodule = make_data(run.module.policy, packing=packing, max_tokens_per_micro_batch=budget)
    run.fit()
    assert run.logger.values("coldstart/loss") == pytest.approx(expected.logger.values("coldstart/loss"), rel=1e-6)
    start = flat(small_policy().build_model().parameters())
    updates = [flat(each.network.parameters()) - start for each in (run, expected)]
    assert relative_l2(*updates) < 1e-4


@pytest.mark.parametrize("packing", ["padded", "flat"])
def test_activations_that_are_computed_again_change_no_update(tmp_path, packing):
    weights = []
    for again in (False, True):
        policy, sgd = small_policy(), partial(torch.optim.SGD, lr=0.1)
        run = make_cold_start(tmp_path / str(again), 1, policy, optimizer=sgd, gradient_checkpointing=again)
        run.datamodule = make_data(policy, packing=packing)
        weights.append(flat(run.fit().network.parameters()))
    assert torch.equal(*weights)


@pytest.mark.parametrize("packing", ["padded", "flat"])
def test_micro_batches_stay_within_their_budget_and_hold_every_demonstration_once(tmp_path, packing):
    policy = small_policy()
    data = make_data(policy, packing=packing, max_tokens_per_micro_batch=100)
    whole = make_data(policy)
    for each in (data, whole):
        each.trainer = SimpleNamespace(world_size=1, global_rank=0)
    step, [expected] = data.step(3), whole.step(3).micro_batches
    sizes = [
        len(batch.packed.input_ids) if packing == "flat" else batch.input_ids.numel() for batch in step.micro_batches
    ]
    assert len(sizes) > 1
    assert max(sizes) <= 100
    found = sorted(
        [token for token in row if token] for batch in step.micro_batches for row in batch.input_ids.tolist()
    )
    assert found == sorted([token for token in row if token] for row in expected.input_ids.tolist())
    assert step.num_tokens == int(expected.response_mask.sum())


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"packing": "tree"}, "`packing`"),
        ({"max_tokens_per_micro_batch": 0}, "`max_tokens"),
        ({"batch_size": 0}, "`batch"),
    ],
)
def test_settings_without_meaning_are_refused(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        make_data(small_policy(), **settings)


def test_a_pretrained_policy_starts_from_its_weights_and_recomputes_where_asked(tmp_path):
    policy = small_policy()
    model = policy.build_model()
    with torch.no_grad():
        next(model.parameters()).mul_(2.0)
    model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    pretrained = PretrainedPolicy(str(tmp_path))
    module = ColdStartModule(pretrained, torch.optim.SGD, gradient_checkpointing=True)
    module.configure_model()
    assert torch.equal(flat(module.network.parameters()), flat(model.parameters()))
    layer = module.network.model.model.layers[0]
    assert layer.gradient_checkpointing
    assert layer.training


def test_bfloat16_products_leave_weights_and_optimiser_state_in_float32(tmp_path):
    """Several micro-batches meet the same rounded weights, and steps below the spacing of bfloat16 are not lost."""
    updates = []
    for precision in ("32-true", "bf16-mixed"):
        adam = partial(torch.optim.AdamW, lr=1e-4)
        run = make_cold_start(tmp_path, 3, optimizer=adam, precision=precision)
        run.datamodule = make_data(run.module.policy, packing="flat", max_tokens_per_micro_batch=100)
        run.fit()
        [optimizer] = run.trainer.optimizers
        states = [value for state in optimizer.state.values() for value in state.values()]
        assert {value.dtype for value in (*run.network.parameters(), *states)} == {torch.float32}
        updates.append(flat(run.network.parameters()) - flat(small_policy().build_model().parameters()))
    exact, rounded = updates
    assert float(torch.cosine_similarity(exact, rounded, dim=0)) > 0.9
    # Adam's first steps have the size of the rate; bfloat16 weights of 0.02 are spaced by 1.2e-4 and would not move.
    assert float((rounded != 0).float().mean()) > 0.9


def test_gradients_are_clipped(tmp_path):
    run = make_cold_start(tmp_path, 1, optimizer=partial(torch.optim.SGD, lr=1.0), max_grad_norm=0.01).fit()
    update = flat(run.network.parameters()) - flat(small_policy().build_model().parameters())
    assert float(update.norm()) == pytest.approx(0.01, rel=1e-2)


def test_the_scheduler_steps_once_per_optimiser_step(tmp_path):
    scheduler = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1 / (1 + step))
    run = make_cold_start(tmp_path, 3, scheduler=scheduler).fit()
    # After three steps the next rate is 1e-2 / 4.
    assert run.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0025)


def test_every_demonstration_comes_once(tmp_path):
    policy = small_policy()
    data = make_data(policy, batch_size=3)
    data.trainer = make_trainer(tmp_path, logger=False)
    batches = [step.micro_batches[0] for step in islice(data.train_dataloader(), 4)]
    chat_format = TagFormat(policy.tokenizer, ("search",))
    rows = [encode_demonstration(TASK.demonstration(index), chat_format, 1)[0] for index in range(12)]
    found = [[token for token in row if token] for batch in batches for row in batch.input_ids.tolist()]
    assert found == rows


def test_the_saved_policy_is_the_trained_one(tmp_path):
    run = make_cold_start(tmp_path, 5).fit()
    policy = run.module.policy
    run.network.model.save_pretrained(tmp_path / "policy")
    policy.tokenizer.save_pretrained(tmp_path / "policy")
    loaded = PretrainedPolicy(name_or_path=str(tmp_path / "policy"))
    network = PolicyNetwork(loaded.build_model())
    assert torch.equal(flat(network.parameters()), flat(run.network.parameters()))
    assert loaded.tokenizer.get_vocab() == policy.tokenizer.get_vocab()
    assert encoded(loaded) == encoded(policy)
    publish(run.network, TransformersEngine(loaded, max_num_seqs=1, max_model_len=64), version=5)
