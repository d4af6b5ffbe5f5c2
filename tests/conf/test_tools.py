"""The configurations of tools: what they build, without a network, a key or a server."""

import asyncio
import json
import sys

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from aepo_lightning.app.build import build, build_cold_start
from aepo_lightning.chat_formats.hermes import HermesFormat
from aepo_lightning.contracts.chat_format import ChatFormat
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import ToolCall, ToolContext, ToolRunner, ToolStatus
from aepo_lightning.errors import ConfigError
from tests.support.chatml import chatml_tokenizer
from tests.support.paths import SUPPORT

SERVER = SUPPORT / "mcp_example.py"
CONTEXT = ToolContext(question=Question(question_id="q", messages=(), answers=("x",)), call_index=0)
KEYED = {"web_search": ("search",), "deep_research": ("search", "browse", "python")}


@pytest.fixture
def composed(tmp_path):
    def compose_with(*overrides):
        with initialize_config_module("aepo_lightning.conf", version_base="1.3"):
            return compose("train", overrides=[f"output_root={tmp_path}", *overrides])

    yield compose_with
    GlobalHydra.instance().clear()


def limits_of(runtime):
    return {spec.name: spec.limits for spec in runtime.specs}


@pytest.mark.parametrize("name", KEYED)
def test_keys_come_from_the_environment_and_are_in_no_text(composed, monkeypatch, name):
    monkeypatch.setenv("SERPER_API_KEY", "my-secret")
    cfg = composed(f"tools={name}")
    runtime = build(cfg.tools)
    assert isinstance(runtime, ToolRunner)
    assert runtime.tool_names == KEYED[name]
    assert "my-secret" not in OmegaConf.to_yaml(cfg) + repr(runtime) + repr(runtime.specs)


@pytest.mark.parametrize("name", KEYED)
def test_a_missing_key_is_named(composed, monkeypatch, name):
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    with pytest.raises((ConfigError, InstantiationException), match="`api_key` of Serper must not be empty"):
        build(composed(f"tools={name}").tools)


def test_searches_are_kept_and_shared_and_tried_again(composed, monkeypatch, tmp_path):
    monkeypatch.setenv("SERPER_API_KEY", "key")
    runtime = build(composed("tools=web_search").tools)
    limits = limits_of(runtime)["search"]
    assert (limits.cache_ttl_s, limits.cache_empty_ttl_s, limits.is_single_flight) == (None, 600.0, True)
    assert (limits.retry.max_attempts, limits.breaker_failures) == (3, 10)
    runtime.cache.close()
    assert list(tmp_path.iterdir()) == []  # nothing is opened before the first call


def test_browse_refuses_addresses_inside_the_network(composed):
    runtime = build(composed("tools=browse").tools)
    limits = limits_of(runtime)["browse"]
    assert (limits.deadline_s, limits.cache_ttl_s, limits.is_single_flight) == (60.0, 604800.0, True)

    async def ask():
        try:
            return await runtime.call(ToolCall(tool="browse", text="http://127.0.0.1:1/"), CONTEXT)
        finally:
            await runtime.close()

    result = asyncio.run(ask())
    runtime.cache.close()
    assert result.status is ToolStatus.ERROR
    assert "not on the public internet" in result.text


def test_the_tools_of_a_server_are_built_with_limits(composed):
    pytest.importorskip("mcp", reason="needs the `mcp` extra")
    cfg = composed("tools=mcp")
    cfg.tools.tools[0].server.command = [sys.executable, str(SERVER)]
    runtime = build(cfg.tools)
    result = asyncio.run(runtime.call(ToolCall(tool="say_it", text="hello"), CONTEXT))
    runtime._by_name["say_it"].tool.server.close()
    assert result.text == "hello"
    assert {limits.deadline_s for limits in limits_of(runtime).values()} == {30.0}


def test_tools_that_cannot_work_here_are_refused_before_the_cold_start(composed, monkeypatch):
    cfg = composed("tools=python")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="bubblewrap is not installed"):
        build_cold_start(cfg, build(cfg.model))


def test_an_mcp_server_must_be_named(composed):
    pytest.importorskip("mcp", reason="needs the `mcp` extra")
    with pytest.raises((ConfigError, InstantiationException), match="One of `command` and `url` must be given"):
        build(composed("tools=mcp").tools)


def test_a_corpus_is_indexed_and_searched(composed, tmp_path):
    file = tmp_path / "corpus.jsonl"
    rows = [{"contents": "The heron waits."}, {"contents": "A bell rings."}]
    file.write_text("\n".join(map(json.dumps, rows)))
    cfg = composed("tools=corpus", f"tools.tools.0.index.files=[{file}]", "tools.tools.0.index.fields.text=contents")
    runtime = build(cfg.tools)
    result = asyncio.run(runtime.call(ToolCall(tool="search", text="bells"), CONTEXT))
    assert result.text == "Page 1: A bell rings."
    assert (tmp_path / "corpus_index").is_dir()


def test_hermes_changes_the_format_and_nothing_else(composed):
    default, hermes = (composed(f"rollout={name}").rollout for name in ("default", "hermes"))
    built = build(hermes.chat_format, tokenizer=chatml_tokenizer(), specs=build(composed("tools=search").tools).specs)
    assert isinstance(built, HermesFormat)
    assert isinstance(built, ChatFormat)
    assert {**default, "chat_format": None} == {**hermes, "chat_format": None}
