"""Settings of the module, and the temperature, which is that of the data."""

from functools import partial

import pytest
import torch

from aepo_lightning.errors import ConfigError
from aepo_lightning.training.module import AEPOModule
from tests.support.training import (
    at_temperature,
    build_experience,
    built_module,
    experience_builder,
    make_algorithm,
    random_trees,
    small_policy,
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_grad_norm": 0.0}, "`max_grad_norm` must be positive"),
        ({"logprob_chunk_size": 0}, "`logprob_chunk_size` must be auto or at least 1, but got 0"),
        ({"lr": 0.0}, "`lr` must be positive"),
        ({"lr": 1.0, "optimizer": partial(torch.optim.SGD, lr=1.0)}, "`lr` must be left out beside `optimizer`"),
    ],
    ids=str,
)
def test_settings_without_meaning_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        AEPOModule(small_policy(), make_algorithm(), **options)


def test_adamw_at_the_given_rate_is_the_default():
    module = AEPOModule(small_policy(), make_algorithm(), lr=3e-4)
    module.configure_model()
    optimizer = module.configure_optimizers()
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["lr"] == 3e-4
    assert optimizer.param_groups[0]["weight_decay"] == 0.0


def test_log_probs_are_taken_at_the_temperature_that_tokens_were_sampled_at():
    module = built_module()
    for temperature in (0.5, 1.0):
        (step,) = build_experience(module, at_temperature(random_trees(2), temperature))
        (batch,) = step.micro_batches
        assert batch.temperature == temperature
        ids, length = batch.input_ids[:1], int(batch.lengths[0])
        with torch.no_grad():
            logits = module.network.model(input_ids=ids[:, :length], use_cache=False).logits[0, :-1] / temperature
        expected = logits.log_softmax(-1).gather(-1, ids[0, 1:length, None])[:, 0]
        mask = batch.response_mask[0, : length - 1]
        # Two float32 computations of the same sums in another order.
        torch.testing.assert_close(batch.old_logprobs[0, : length - 1][mask], expected[mask], atol=1e-5, rtol=1e-5)


def test_trees_of_two_temperatures_make_no_step():
    module = built_module()
    trees = [*at_temperature(random_trees(1), 0.5), *random_trees(1)]
    with pytest.raises(ValueError, match=r"must have one temperature, but got \[0.5, 1.0\]"):
        experience_builder(questions_per_step=2).build(trees, module.score)
