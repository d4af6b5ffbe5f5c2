import pytest

from aepo_lightning.app.plan.model_size import model_size
from aepo_lightning.app.plan.update_memory import (
    ACTIVATIONS,
    BUFFERS,
    GATHERED,
    GRADIENTS,
    HEAD,
    OPTIMISER,
    REFERENCE,
    WEIGHTS,
    WORKSPACE,
    UpdateMemory,
)
from tests.support.planning import SMALL, make_settings

ALL_MOMENTS = (
    "log-prob head, forward",
    "log-prob head, backward",
    "last layer",
    "second to last layer",
    "gradients of a layer",
    "gradients of the embedding",
    "reduction of the root unit",
    "optimiser",
)


def memory(**changes):
    settings = make_settings(**changes)
    return UpdateMemory(model_size(settings.architecture), settings)


def parts(moment, **changes):
    (found,) = [each.parts for each in memory(**changes).moments() if each.name == moment]
    return found


def peak(**changes):
    return memory(**changes).peak().num_bytes


def test_moments_stand_in_the_order_of_a_step():
    assert tuple(moment.name for moment in memory().moments()) == ALL_MOMENTS


@pytest.mark.parametrize("moment", ALL_MOMENTS)
def test_states_are_there_at_every_moment(moment):
    found = parts(moment)
    # 4 * 143776 / 4, 8 * 143776 / 4, 4 * 143776 / 4
    assert (found[WEIGHTS], found[OPTIMISER], found[GRADIENTS]) == (143_776, 287_552, 143_776)


# The step has two micro-batches of 1200 tokens of 33 bytes: 79200. Layer inputs take 2*64 = 128 bytes a token, the
# rotary cosines and sines 2*2*24 = 96, so two layers keep 1200 * (2*128 + 96) + 79200 = 501600, one keeps 348000.
@pytest.mark.parametrize(
    ("moment", "part", "expected"),
    [
        # 501600; final norm 4*64 + 4 + 2*64 = 388 and scored states 128 a token: 1200 * 516; norm's output 1200 * 128
        (ALL_MOMENTS[0], ACTIVATIONS, 1_274_400),
        # root 2*32832, and the last layer on its way 2*55472
        (ALL_MOMENTS[0], GATHERED, 176_608),
        # 32 * 256 = 8192 logits are 1200 tokens by 6 words: 3 blocks of 7200 numbers
        (ALL_MOMENTS[0], HEAD, 86_400),
        # 501600 + 1200 * 516
        (ALL_MOMENTS[1], ACTIVATIONS, 1_120_800),
        # gradient of the head 2 * 256*64
        (ALL_MOMENTS[1], BUFFERS, 32_768),
        # 3 blocks 86400; gradients of 2 * 6 words 4 * 2*6*64 = 3072; gradients of states (4 + 2) * 1200*64 = 460800
        (ALL_MOMENTS[1], HEAD, 550_272),
        # 501600; recomputed 4048 and gradients 2 * (2*192 + 64) = 896 a token: 1200 * 4944
        (ALL_MOMENTS[2], ACTIVATIONS, 6_434_400),
        # 2 * (32832 + 55472), the layer below on its way 2 * 55472
        (ALL_MOMENTS[2], GATHERED, 287_552),
        # MLP's weight 2 * 192*64 = 24576 and the head 32768
        (ALL_MOMENTS[2], BUFFERS, 57_344),
        # 348000 + 1200 * 4944
        (ALL_MOMENTS[3], ACTIVATIONS, 6_280_800),
        # nothing is below the first layer
        (ALL_MOMENTS[3], GATHERED, 176_608),
        # 57344, and the last layer's fp32 gradients 4 * 55472 on their way
        (ALL_MOMENTS[3], BUFFERS, 279_232),
        # 501600 + 1200 * 128
        (ALL_MOMENTS[4], ACTIVATIONS, 655_200),
        # (4 + 2) * 55472 and the head 32768
        (ALL_MOMENTS[4], BUFFERS, 365_600),
        # 79200 + 1200 * 128
        (ALL_MOMENTS[5], ACTIVATIONS, 232_800),
        (ALL_MOMENTS[5], GATHERED, 65_664),
        # embedding and head 2 * 32768, a layer's fp32 gradients 4 * 55472
        (ALL_MOMENTS[5], BUFFERS, 287_424),
        (ALL_MOMENTS[6], ACTIVATIONS, 79_200),
        # (4 + 2) * 32832
        (ALL_MOMENTS[6], BUFFERS, 196_992),
        # 4 * 143776 / 4
        (ALL_MOMENTS[7], WORKSPACE, 143_776),
    ],
)
def test_every_part_of_every_moment_equals_its_arithmetic(moment, part, expected):
    assert parts(moment)[part] == expected


def test_the_peak_is_the_largest_moment():
    # last layer: 575104 of states + 6434400 + 287552 + 57344
    assert memory().peak().name == "last layer"
    assert peak() == 7_354_400


def test_without_checkpointing_every_layer_keeps_what_it_saved():
    # 1200 * (2*4048 + 96) + 79200; gradients 1200 * 896; nothing is computed again
    assert parts("last layer", is_checkpointed=False)[ACTIVATIONS] == 9_909_600 + 1_075_200


def test_fp32_norms_save_the_input_of_their_layer_itself():
    # A in fp32: norms 2 * (12*64 + 4) = 1544; attention 8*96 + 8*48 + 16 = 1168; q and k norms 8*144 + 24 = 1176;
    # MLP 16*192 = 3072; together 6960, of which 4*64 = 256 are the input of the layer. Inputs 2*256, rotary 192,
    # gradients 4 * (2*192 + 64) = 1792: 1200 * (512 + 192 + 6704 + 1792) + 79200
    assert parts("last layer", is_mixed_precision=False)[ACTIVATIONS] == 11_119_200


def test_a_trajectory_longer_than_the_token_budget_makes_the_largest_pass():
    # prompt 2000 and response 400: 2400 tokens, one row a pass, 4 passes; 2400 * (352 + 4944) + 33 * 2400*4
    assert parts("last layer", max_prompt_tokens=2000)[ACTIVATIONS] == 13_027_200


def test_rows_that_do_not_divide_are_padded():
    # 64 ranks: q 2 rows of 64, k and v 1, o 1 row of 96, norms of 24 one number, gate and up 3, down 1 of 192, norms 1:
    # 128 + 64 + 64 + 96 + 1 + 1 + 192 + 192 + 192 + 1 + 1 = 932; embedding and head 4 rows: 256 + 256 + 1 = 513.
    assert parts("optimiser", num_gpus=64)[WEIGHTS] == 4 * (2 * 932 + 513)


def test_deferred_gradients_are_whole_until_their_unit_is_reduced():
    deferred = {"is_gradient_sync_deferred": True}
    assert parts("log-prob head, backward", **deferred)[GRADIENTS] == 4 * 143_776
    # one layer of two is reduced: its quarter, the other and the root whole
    assert parts("second to last layer", **deferred)[GRADIENTS] == 4 * (55_472 // 4 + 55_472 + 32_832)
    assert parts("optimiser", **deferred)[GRADIENTS] == 143_776


def test_a_reference_model_takes_another_set_of_weights():
    assert parts("optimiser", has_reference=True)[REFERENCE] == 143_776


def test_replicas_have_everything_and_copies_of_their_gradients():
    found = parts("last layer", sharding="replicated")
    assert (found[WEIGHTS], found[OPTIMISER], found[GRADIENTS]) == (4 * 143_776, 8 * 143_776, 8 * 143_776)
    assert GATHERED not in found


def test_one_rank_gathers_nothing_from_others_but_has_its_own_copies():
    # 2 * (32832 + 55472)
    assert parts("last layer", num_gpus=1)[GATHERED] == 176_608


def test_layers_that_are_not_resharded_stay_gathered():
    # 2 * (32832 + 2 * 55472)
    assert parts("last layer", is_resharded_after_forward=False)[GATHERED] == 287_552
    assert parts("gradients of the embedding", is_resharded_after_forward=False)[GATHERED] == 65_664


def test_offloaded_states_are_in_host_memory():
    found = memory(is_cpu_offloaded=True)
    assert all(WEIGHTS not in moment.parts and OPTIMISER not in moment.parts for moment in found.moments())
    # 16 * 143776 / 4
    assert found.offloaded_bytes() == 575_104
    # beside 2 * (32832 + 2 * 55472), a layer's shard in four and in two bytes: 6 * 55472 / 4
    assert parts("last layer", is_cpu_offloaded=True)[GATHERED] == 287_552 + 83_208
    assert memory().offloaded_bytes() == 0
    assert memory(is_cpu_offloaded=True, is_gpu=False).offloaded_bytes() == 0


def test_bf16_weights_halve_the_states():
    found = parts("optimiser", weight_bytes=2)
    assert (found[WEIGHTS], found[OPTIMISER], found[GRADIENTS]) == (71_888, 143_776, 71_888)


def test_an_adapter_has_the_states_and_the_weights_have_none():
    # Rank 2 beside q (96, 64), k and v (48, 64), o (64, 96), gate and up (192, 64), down (64, 192):
    # A on 4 ranks is one row each of 2: 64 * 5 + 96 + 192 = 608; B a quarter of its rows:
    # (24 + 12 + 12 + 16 + 48 + 48 + 16) * 2 = 352; 960 numbers in each of two layers.
    found = parts("optimiser", adapter_rank=2)
    assert found[WEIGHTS] == 4 * (143_776 // 4 + 2 * 960)
    assert found[OPTIMISER] == 8 * 2 * 960
    assert found[GRADIENTS] == 4 * 2 * 960
    assert BUFFERS not in parts("log-prob head, backward", adapter_rank=2)


def test_an_adapter_on_some_layers_takes_less():
    # q alone: a row of 64 and 24 * 2
    found = parts("optimiser", adapter_rank=2, adapter_targets=("q_proj",))
    assert found[GRADIENTS] == 4 * 2 * (64 + 48)


def test_frozen_norms_keep_less_and_adapters_their_inner_states():
    # 4048 - 2 * (2*64 + 144) for what norms normalised + 2 * 2 * 7 for seven maps of rank 2
    more = parts("last layer")[ACTIVATIONS] - parts("last layer", adapter_rank=2)[ACTIVATIONS]
    assert more == 1200 * (544 - 28)


def test_a_cpu_widens_the_head_and_steps_weight_by_weight():
    # The gradient of states and their copy in fp32, rounded at the end: (4 + 4 + 2) * 1200*64 = 768000. One block of
    # 7200 numbers; 6 words of 64, their gradients, and those of the part before: 4 * (7200 + 3*6*64) = 33408.
    assert parts("log-prob head, backward", is_gpu=False)[HEAD] == 768_000 + 33_408
    # two copies of the largest weight's quarter: 2 * 4 * 16384 / 4
    assert parts("optimiser", is_gpu=False)[WORKSPACE] == 32_768


def test_tied_weights_wait_for_the_gradient_of_the_embedding():
    tied = {"architecture": {**SMALL, "tie_word_embeddings": True}}
    # three times 2 * 256*64 and a layer's fp32 gradients 4 * 55472
    assert parts("gradients of the embedding", **tied)[BUFFERS] == 320_192


# Laws ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMISER, GRADIENTS])
def test_sharded_parts_halve_when_the_ranks_double(name):
    assert parts("last layer", num_gpus=2)[name] == 2 * parts("last layer", num_gpus=4)[name]


@pytest.mark.parametrize("option", ["is_checkpointed", "is_mixed_precision"])
@pytest.mark.parametrize("value", [True, False])
def test_more_tokens_never_need_less(option, value):
    found = [peak(micro_batch_tokens=tokens, **{option: value}) for tokens in (500, 1000, 2000, 4000)]
    assert found == sorted(found)


def test_more_ranks_never_need_more():
    found = [peak(num_gpus=ranks) for ranks in (2, 4, 8, 16)]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(
    "saving",
    [
        {"is_checkpointed": True},
        {"is_mixed_precision": True},
        {"is_gradient_sync_deferred": False},
        {"is_resharded_after_forward": True},
        {"has_reference": False},
        {"is_cpu_offloaded": True},
        {"adapter_rank": 2},
    ],
    ids=lambda saving: next(iter(saving)),
)
def test_what_is_meant_to_save_memory_saves_memory(saving):
    wasteful = {
        "architecture": {**SMALL, "num_hidden_layers": 6},
        "is_checkpointed": False,
        "is_mixed_precision": False,
        "is_gradient_sync_deferred": True,
        "is_resharded_after_forward": False,
        "has_reference": True,
    }
    assert peak(**(wasteful | saving)) < peak(**wasteful)


def test_one_layer_has_no_layer_before_it():
    found = memory(architecture={**SMALL, "num_hidden_layers": 1})
    by_name = {moment.name: moment.num_bytes for moment in found.moments()}
    assert by_name["second to last layer"] == by_name["last layer"]
