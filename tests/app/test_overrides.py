import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf

from aepo_lightning.app.overrides import config_keys, explain_missing, explain_override_error, single_jobs, suggest

FILES = {
    "train.yaml": "defaults:\n  - trainer: default\n  - algorithm: grpo\n  - _self_\nseed: 1\n",
    "trainer/default.yaml": "max_epochs: 3\nprecision: bf16\noptimizer:\n  lr: 0.1\n",
    "algorithm/grpo.yaml": "clip_range_low: 0.2\n",
    "algorithm/aepo.yaml": "clip_range_low: 0.2\n",
    "experiment/aepo_qwen3_14b.yaml": "# @package _global_\nseed: 2\n",
}


@pytest.fixture
def conf(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        yield compose


def explain(conf, override, expected_type):
    """Compose with one override, and explain what Hydra really raises."""
    keys = config_keys(OmegaConf.to_container(conf("train")))
    with pytest.raises(HydraException, match=r"\S") as caught:
        conf("train", [override])
    assert type(caught.value) is expected_type
    return explain_override_error(caught.value, keys)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "trainer.max_epoch=3",
            "`trainer.max_epoch` must be a key of the config, but there is none. Did you mean `trainer.max_epochs`? "
            "To add a new key, write +trainer.max_epoch=3.",
        ),
        (
            "max_epoch=3",
            "`max_epoch` must be a key of the config, but there is none. Did you mean `trainer.max_epochs`? "
            "To add a new key, write +max_epoch=3.",
        ),
        (
            "trainr.max_epochs=3",
            "`trainr.max_epochs` must be a key of the config, but there is none. Did you mean `trainer.max_epochs`? "
            "To add a new key, write +trainr.max_epochs=3.",
        ),
        (
            "algoritm=aepo",
            "`algoritm` must be a key of the config, but there is none. Did you mean `algorithm`? "
            "To add a new key, write +algoritm=aepo.",
        ),
        (
            "zzz=1",
            "`zzz` must be a key of the config, but there is none. To add a new key, write +zzz=1.",
        ),
        (
            "trainer={precison: 32}",
            "`trainer.precison` must be a key of the config, but there is none. Did you mean `trainer.precision`?",
        ),
        (
            "experiment=aepo_qwen3_14b",
            "`experiment` must be added with a +, because it is not among the defaults. "
            "Write +experiment=aepo_qwen3_14b.",
        ),
        (
            "+trainer.max_epochs=4",
            "`trainer.max_epochs` must be set without a +, because it exists already. Write trainer.max_epochs=4.",
        ),
        (
            "+algorithm=aepo",
            "`algorithm` must be set without a +, because it exists already. Write algorithm=OPTION.",
        ),
        (
            "++algorithm=aepo",
            "`++algorithm=aepo` must not begin with ++, because it chooses from a group. Write algorithm=aepo.",
        ),
        (
            "~trainer.max_epoch",
            "`~trainer.max_epoch` must name something in the config, but there is no such thing. "
            "Did you mean `trainer.max_epochs`?",
        ),
        (
            "~algorithm=aepo",
            "`~algorithm` must name the option in use, but got aepo. Write ~algorithm to delete whichever it is.",
        ),
    ],
)
def test_a_refused_key_is_named_with_what_to_do(conf, override, expected):
    assert explain(conf, override, ConfigCompositionException) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("algorithm=grppo", "`algorithm` must be one of aepo, grpo, but got grppo. Did you mean `grpo`?"),
        ("algorithm=zzz", "`algorithm` must be one of aepo, grpo, but got zzz. Write algorithm=aepo, for example."),
        ("algorithm=", "`algorithm` must be one of aepo, grpo, but got nothing. Write algorithm=aepo, for example."),
        (
            "+experiment=aepo_qwen_14b",
            "`experiment` must be one of aepo_qwen3_14b, but got aepo_qwen_14b. Did you mean `aepo_qwen3_14b`?",
        ),
    ],
)
def test_an_unknown_option_is_named_with_all_options_and_the_nearest(conf, override, expected):
    assert explain(conf, override, MissingConfigException) == expected


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("trainer.max_epochs", "missing EQUAL at '<EOF>'"),
        ("trainer.max_epochs==3", "extraneous input '='"),
        ("trainer.max_epochs=[1,", "no viable alternative at input '[1,'"),
        ("seed=a=b", "mismatched input '=' expecting <EOF>"),
    ],
)
def test_bad_syntax_is_shown_with_the_reason_and_a_way_to_quote(conf, override, reason):
    message = explain(conf, override, OverrideParseException)
    assert message.startswith(f"`{override}` must read key=value, but got a syntax error: {reason}")
    assert message.endswith("quotes of its own: 'key=\"a=b\"'.")


def test_a_missing_primary_config_keeps_hydras_first_line(conf):
    with pytest.raises(MissingConfigException, match="nowhere") as caught:
        conf("nowhere")
    assert explain_override_error(caught.value, ["seed"]) == str(caught.value).splitlines()[0]


@pytest.mark.parametrize("error", [ValueError("Config group override must be a string"), KeyError()])
def test_any_other_error_keeps_its_own_message(error):
    assert explain_override_error(error, ["seed"]) == (str(error) or "KeyError")


def test_config_keys_lists_groups_and_values():
    config = {"trainer": {"max_epochs": 3, "optimizer": {"lr": 0.1}}, "layers": [1, 2], "seed": 1}
    assert config_keys(config) == (
        "trainer",
        "trainer.max_epochs",
        "trainer.optimizer",
        "trainer.optimizer.lr",
        "layers",
        "seed",
    )


KEYS = ["trainer", "trainer.max_epochs", "trainer.max_steps", "trainer.optimizer.lr", "algorithm", "seed"]


@pytest.mark.parametrize(
    ("key", "best"),
    [
        ("trainer.max_epoch", "trainer.max_epochs"),
        ("max_epoch", "trainer.max_epochs"),
        ("Trainer.Max_Epochs", "trainer.max_epochs"),
        ("trainer.lr", "trainer.optimizer.lr"),
        ("algorthm", "algorithm"),
        ("Could not override 'sed'.", "seed"),
    ],
    ids=["dotted", "without_group", "case", "wrong_depth", "group", "message"],
)
def test_suggest_puts_the_nearest_key_first(key, best):
    assert suggest(key, KEYS)[0] == best


def test_suggest_finds_a_valid_key_itself():
    assert all(suggest(key, KEYS)[0] == key for key in KEYS)


def test_suggest_offers_at_most_three_keys_and_none_that_differs_too_much():
    assert len(suggest("lr", [f"group{i}.lr" for i in range(9)])) == 3
    assert suggest("zzzz", KEYS) == ()
    assert suggest("seed", []) == ()


def test_every_value_of_a_sweep_is_tried_and_no_product():
    jobs = list(single_jobs(["algorithm=aepo,grpo", "seed=1,2,3", "trainer.max_epochs=4", "x=range(1,9)"]))
    assert jobs == [
        ["algorithm=aepo", "seed=1", "trainer.max_epochs=4"],
        ["algorithm=grpo", "seed=2", "trainer.max_epochs=4"],
        ["algorithm=grpo", "seed=3", "trainer.max_epochs=4"],
    ]
    assert list(single_jobs([])) == [[]]


def test_missing_values_are_named_but_for_those_that_the_run_sets():
    assert explain_missing({"callbacks.checkpoint.dirpath", "logger.save_dir"}) is None
    assert explain_missing({"b.y", "a.x", "logger.save_dir"}) == (
        "`a.x`, `b.y` must be given, but got nothing. Write a.x=VALUE b.y=VALUE."
    )


def test_bases_are_not_offered_as_options(conf, tmp_path):
    (tmp_path / "algorithm" / "_base.yaml").write_text("x: 1\n")
    assert "_base" not in explain(conf, "algorithm=base", MissingConfigException)
