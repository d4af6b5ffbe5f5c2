"""Parts of a user in the configuration: found in the working directory, named when they are not what they should be."""

import functools
import sys

import lightning as L
import pytest
from omegaconf import OmegaConf

from aepo_lightning.app.build import build, build_trainer, find_modules_here
from aepo_lightning.app.user_parts import check_callback, naming_callbacks, with_functions, without_settings_of
from aepo_lightning.callbacks import EntropyMonitor
from aepo_lightning.errors import CallbackError, ConfigError
from aepo_lightning.rewards import PaperReward

MINE = """
import functools

def contains(sample, bonus=0.0):
    return 1.0 + bonus

def weighted(sample, weight):
    return weight

def loudly(function):
    @functools.wraps(function)
    def wrapper(*values, **named):
        return function(*values, **named)
    return wrapper

@loudly
def decorated(sample):
    return 1.0

@functools.lru_cache
def remembered(sample):
    return 1.0

async def later(sample):
    return 1.0

def make(scale=2.0):
    return lambda sample: scale

class Scaled:
    def __init__(self, scale=1.0):
        self.scale = scale

    def __call__(self, sample):
        return self.scale

ready = Scaled(3.0)
number = 5
"""


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_rewards.py").write_text(MINE)
    (tmp_path / "mine_broken.py").write_text("from nowhere_at_all import x\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    find_modules_here()
    yield
    for name in ("mine_rewards", "mine_broken"):
        sys.modules.pop(name, None)


def part(**node):
    return build(with_functions(OmegaConf.create(node), "reward"))


@pytest.mark.parametrize(
    ("name", "settings", "value"),
    [
        ("contains", {}, 1.0),
        ("contains", {"bonus": 0.5}, 1.5),
        ("weighted", {"weight": 4.0}, 4.0),
        ("decorated", {}, 1.0),
        ("remembered", {}, 1.0),
        ("make", {"scale": 3.0}, 3.0),
        ("make", {}, 2.0),
        ("Scaled", {"scale": 3.0}, 3.0),
        ("ready", {}, 3.0),
        ("later", {}, None),
    ],
)
def test_a_function_that_needs_more_is_the_part_itself_and_anything_else_is_called(name, settings, value):
    built = part(_target_=f"mine_rewards.{name}", **settings)
    found = built("sample")
    if value is None:
        found.close()
    else:
        assert found == value


def test_functions_inside_a_part_stand_for_themselves():
    inner = {"_target_": "mine_rewards.contains"}
    built = part(_target_="builtins.dict", objective=inner, listed=[inner, None], kept=3)
    assert isinstance(built["objective"], functools.partial)
    assert built["listed"][0]("sample") == 1.0
    assert built["kept"] == 3


@pytest.mark.parametrize(
    ("node", "named"),
    [
        (
            {"_target_": "mine_rewards.nothing"},
            "`reward._target_` must be something to import, but 'mine_rewards.nothing'",
        ),
        ({"_target_": "mine_broken.x"}, "No module named 'nowhere_at_all'"),
        ({"_target_": "mine_rewards.number"}, "must be a class or a function, but 'mine_rewards.number' is 5"),
        ({"_target_": "mine_rewards.contains", "bonsu": 1}, "has `bonsu`. Did you mean `bonus`?"),
        ({"_target_": "mine_rewards.Scaled", "other": 1}, "takes, but has `other`. Take it out: ~reward.other."),
        (
            {"_target_": "builtins.dict", "a": {"_target_": "no_such"}},
            "`reward.a._target_` must be something to import",
        ),
    ],
    ids=["missing", "broken", "number", "mistyped", "stranger", "inner"],
)
def test_a_target_that_cannot_be_used_is_one_message(node, named):
    with pytest.raises(ConfigError) as caught:
        part(**node)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_target_that_is_not_there_is_named_wherever_it_stands():
    with pytest.raises(ConfigError, match=r"`inner._target_` must be something to import, but 'no_such\.thing' is not"):
        build(OmegaConf.create({"_target_": "builtins.dict", "inner": {"_target_": "no_such.thing"}}))


def test_settings_of_the_paper_do_not_reach_another_reward():
    paper = {"multi_tool_bonus": 0.1, "bonus_from_executed_calls": False, "match": "typed"}
    node = OmegaConf.create({"_target_": "mine_rewards.contains", "bonus": 0.5, **paper})
    assert build(with_functions(without_settings_of(PaperReward, node), "reward"))("sample") == 1.5
    own = OmegaConf.create({"_target_": "aepo_lightning.rewards.PaperReward", **paper})
    assert build(without_settings_of(PaperReward, own)) == PaperReward()


@pytest.mark.parametrize("node", [{}, {"a": 1}, ["a"]], ids=["empty", "mapping", "list"])
def test_a_reward_without_a_target_is_refused(node):
    with pytest.raises(ConfigError, match="`reward` must be a mapping with a `_target_`, but got"):
        without_settings_of(PaperReward, OmegaConf.create(node))


def test_a_key_that_the_trainer_does_not_know_is_one_message(tmp_path):
    cfg = OmegaConf.create(
        {
            "callbacks": {},
            "trainer": {"_target_": "lightning.Trainer", "max_epoch": 3},
            "strategy": {"_target_": "builtins.str", "object": "auto"},
            "logger": {"_target_": "lightning.pytorch.loggers.CSVLogger"},
        }
    )
    with pytest.raises(ConfigError, match=r"but has `max_epoch`\. Did you mean `max_epochs`"):
        build_trainer(cfg, tmp_path)


class Fails(L.Callback):
    def on_train_start(self, trainer, pl_module):  # noqa: ARG002
        raise KeyError("mine")


def call_hook(callback):
    """As Lightning does it."""

    def _call_callback_hooks(hook_name, callback):
        getattr(callback, hook_name)(None, None)

    with naming_callbacks():
        _call_callback_hooks("on_train_start", callback)


def test_a_callback_that_fails_is_named_with_its_hook():
    rule = rf"`{__name__}\.Fails` must not fail, but raised KeyError: 'mine' \(test_user_parts\.py, line \d+\) in "
    with pytest.raises(CallbackError, match=f"{rule}`on_train_start`"):
        call_hook(Fails())


def test_other_errors_stay_what_they_are(monkeypatch):
    with pytest.raises(KeyError), naming_callbacks():
        raise KeyError("ours")
    monkeypatch.setattr(EntropyMonitor, "on_train_start", Fails.on_train_start)
    with pytest.raises(KeyError):
        call_hook(EntropyMonitor())


def test_what_is_no_callback_is_refused():
    assert isinstance(check_callback("mine", Fails()), Fails)
    with pytest.raises(ConfigError, match=r"`callbacks\.mine` must be a `lightning.pytorch.Callback`, but .* gave 3"):
        check_callback("mine", 3)
