"""Where the Hub cannot be reached, that is found out within seconds, and what was downloaded before is used."""

import socket
from contextlib import nullcontext
from threading import Event

import pytest
from transformers import AutoConfig

from aepo_lightning.errors import ConfigError
from aepo_lightning.policy import hub
from aepo_lightning.policy.source import PretrainedPolicy
from tests.support.builders import tiny_policy


@pytest.fixture
def pauses(monkeypatch, tmp_path):
    """What is slept, by the client of the Hub too, while nothing listens where the Hub should be."""
    slept = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


PARTS = [
    lambda policy: policy.tokenizer,
    lambda policy: policy.config,
    lambda policy: policy.build_model(),
    lambda policy: policy.find_weights(),
]


@pytest.mark.parametrize("part", PARTS, ids=["tokenizer", "config", "model", "weights"])
def test_a_name_without_a_network_is_refused_after_a_look(pauses, part, caplog):
    policy = PretrainedPolicy("a/b")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"127\.0\.0\.1 cannot be reached \(.*refused\).*`hf download a/b"):
            part(policy)
    assert pauses == [0.0, 1.0]
    assert caplog.text.count("only what was downloaded before is used. `HF_HUB_OFFLINE=1` says so") == 1


def test_what_was_downloaded_before_is_used_without_a_network(pauses, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    tiny_policy().config.save_pretrained(snapshot)
    refs = tmp_path / "models--a--b" / "refs"
    refs.mkdir()
    (refs / "main").write_text("c0ffee")
    assert PretrainedPolicy("a/b").config.model_type == tiny_policy().config.model_type
    assert PretrainedPolicy("a/b").generation_config is not None
    assert sum(pauses) == 2.0


def test_a_hub_that_listens_is_asked_by_name(monkeypatch):
    asked = []

    def load(place, **_):
        asked.append(place)
        return tiny_policy().config

    monkeypatch.setattr(AutoConfig, "from_pretrained", load)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(hub, "_first_stop", lambda *_: server.getsockname())
        _ = PretrainedPolicy("a/b").config
    assert asked == ["a/b"]


@pytest.mark.parametrize(
    ("endpoint", "proxies", "stop"),
    [
        ("https://huggingface.co", {}, ("huggingface.co", 443)),
        ("http://mirror:8080/hub", {}, ("mirror", 8080)),
        ("https://huggingface.co", {"https": "http://user:word@gate:3128"}, ("gate", 3128)),
        ("https://huggingface.co", {"https": "gate:3128"}, ("gate", 3128)),
        ("https://huggingface.co", {"http": "http://gate:3128"}, ("huggingface.co", 443)),
        ("https://huggingface.co", {"all": "socks5://gate"}, ("gate", 1080)),
        ("https://inside.example", {"https": "http://gate:3128", "no": ".example"}, ("inside.example", 443)),
    ],
)
def test_the_first_connection_is_that_of_the_client(endpoint, proxies, stop, monkeypatch):
    monkeypatch.setenv("no_proxy", proxies.get("no", ""))
    assert hub._first_stop(endpoint, proxies) == stop


def test_a_look_that_does_not_come_to_an_end_is_given_up(monkeypatch):
    is_over = Event()
    monkeypatch.setattr(hub, "_LIMIT_S", 0.0)
    monkeypatch.setattr(socket, "create_connection", lambda *_: is_over.wait() and nullcontext())
    assert hub._why_unreachable("nowhere", 1) == "no answer"
    is_over.set()
