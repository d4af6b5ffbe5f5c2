"""The configurations of tools: what they build, without a network, a key or a server."""

import asyncio
import json
import sys

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from aepo_lightning.app.build import build, build_cold_start, build_tools, find_modules_here
from aepo_lightning.app.command import explain_bad_overrides
from aepo_lightning.chat_formats.hermes import HermesFormat
from aepo_lightning.contracts.chat_format import ChatFormat
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import ToolCall, ToolContext, ToolRunner, ToolStatus
from aepo_lightning.errors import ConfigError
from tests.support.chatml import chatml_tokenizer
from tests.support.extras import needs
from tests.support.paths import SUPPORT

SERVER = SUPPORT / "mcp_example.py"
CONTEXT = ToolContext(question=Question(question_id="q", messages=(), answers=("x",)), call_index=0)
KEYED = {"web_search": ("search",), "deep_research": ("search", "browse", "python")}


MY_TOOLS = '''
from dataclasses import dataclass

from aepo_lightning.contracts.tool import ToolSpec
from aepo_lightning.tools import tool


def add(a: int, b: int) -> str:
    """Add.

    Args:
        a: One.
        b: Another.
    """
    return str(a + b)


async def wait_and_add(a: int, b: int) -> str:
    """Add.

    Args:
        a: One.
        b: Another.
    """
    return str(a + b)


decorated = tool(name="other")(add)


def make(sign: int, name: str):
    def work(a: int, b: int) -> str:
        """Work.

        Args:
            a: One.
            b: Another.
        """
        return str(a + sign * b)

    return tool(name=name)(work)


def bare(a):
    return a


@dataclass
class Fixed:
    spec: ToolSpec = ToolSpec(name="fixed")

    async def __call__(self, arguments, context):
        return "x"
'''


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
    runtime = build_tools(cfg.tools)
    assert isinstance(runtime, ToolRunner)
    assert runtime.tool_names == KEYED[name]
    assert "my-secret" not in OmegaConf.to_yaml(cfg) + repr(runtime) + repr(runtime.specs)


@pytest.mark.parametrize("name", KEYED)
def test_a_missing_key_is_named(composed, monkeypatch, name):
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    with pytest.raises((ConfigError, InstantiationException), match="`api_key` of Serper must not be empty"):
        build_tools(composed(f"tools={name}").tools)


def test_searches_are_kept_and_shared_and_tried_again(composed, monkeypatch, tmp_path):
    monkeypatch.setenv("SERPER_API_KEY", "key")
    runtime = build_tools(composed("tools=web_search").tools)
    limits = limits_of(runtime)["search"]
    assert (limits.cache_ttl_s, limits.cache_empty_ttl_s, limits.is_single_flight) == (None, 600.0, True)
    assert (limits.retry.max_attempts, limits.breaker_failures) == (3, 10)
    runtime.cache.close()
    assert list(tmp_path.iterdir()) == []  # nothing is opened before the first call


def test_browse_refuses_addresses_inside_the_network(composed):
    runtime = build_tools(composed("tools=browse").tools)
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
    needs("mcp", "mcp")
    cfg = composed("tools=mcp")
    cfg.tools.mcp.server.command = [sys.executable, str(SERVER)]
    runtime = build_tools(cfg.tools)
    result = asyncio.run(runtime.call(ToolCall(tool="say_it", text="hello"), CONTEXT))
    runtime._by_name["say_it"].tool.server.close()
    assert result.text == "hello"
    assert {limits.deadline_s for limits in limits_of(runtime).values()} == {30.0}


def test_tools_that_cannot_work_here_are_refused_before_the_cold_start(composed, monkeypatch):
    cfg = composed("tools=python")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="bubblewrap is not installed"):
        build_cold_start(cfg, build(cfg.model))


def test_calls_that_do_not_come_back_are_refused_before_the_cold_start(composed):
    cfg = composed("tools=search")
    cfg.model.tokenizer.words = ["<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}"]
    with pytest.raises(ConfigError, match="'search' must come back as it was written"):
        build_cold_start(cfg, build(cfg.model))


def test_an_mcp_server_must_be_named(composed):
    needs("mcp", "mcp")
    with pytest.raises((ConfigError, InstantiationException), match="One of `command` and `url` must be given"):
        build_tools(composed("tools=mcp").tools)


def test_a_corpus_is_indexed_and_searched(composed, tmp_path):
    file = tmp_path / "corpus.jsonl"
    rows = [{"contents": "The heron waits."}, {"contents": "A bell rings."}]
    file.write_text("\n".join(map(json.dumps, rows)))
    cfg = composed("tools=corpus", f"tools.search.index.files=[{file}]", "tools.search.index.fields.text=contents")
    runtime = build_tools(cfg.tools)
    result = asyncio.run(runtime.call(ToolCall(tool="search", text="bells"), CONTEXT))
    assert result.text == "Page 1: A bell rings."
    assert (tmp_path / "corpus_index").is_dir()


@pytest.fixture
def my_tools(tmp_path, monkeypatch):
    (tmp_path / "my_tools.py").write_text(MY_TOOLS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "my_tools", raising=False)
    find_modules_here()
    yield "my_tools"
    sys.modules.pop("my_tools", None)


def with_tool(composed, **tools):
    cfg = composed("tools=search").tools
    OmegaConf.set_struct(cfg, False)
    return OmegaConf.merge(cfg, tools)


def test_null_leaves_a_tool_out_and_sets_are_put_together(composed, monkeypatch):
    monkeypatch.setenv("SERPER_API_KEY", "key")
    assert build_tools(composed("tools=deep_research", "tools.python=null").tools).tool_names == ("search", "browse")
    both = composed("tools=[search,python]", "tools.runtime.timeout_s=7.0").tools
    runtime = build_tools(both)
    assert (runtime.tool_names, runtime.timeout_s) == (("search", "python"), 7.0)


def test_a_set_of_sets_has_the_settings_of_each(composed, monkeypatch):
    monkeypatch.setenv("SERPER_API_KEY", "key")
    runtime = build_tools(composed("tools=deep_research").tools)
    limits = limits_of(runtime)
    assert runtime.timeout_s == 60.0
    assert (limits["search"].max_concurrent_calls, limits["search"].retry.max_attempts) == (512, 3)
    assert (limits["browse"].deadline_s, limits["python"].deadline_s) == (60.0, 30.0)


@pytest.mark.parametrize("function", ["add", "wait_and_add", "decorated"])
def test_a_function_of_the_working_directory_is_a_tool_under_its_key(composed, my_tools, function):
    node = {"_target_": f"{my_tools}.{function}", "limits": {"deadline_s": 5.0}}
    runtime = build_tools(with_tool(composed, plus=node))
    assert runtime.tool_names == ("search", "plus")
    assert limits_of(runtime)["plus"].deadline_s == 5.0
    result = asyncio.run(runtime.call(ToolCall(tool="plus", text="", arguments={"a": 2, "b": 3}), CONTEXT))
    assert result.text == "5"


def test_the_isolation_of_a_function_is_set_beside_it(composed, my_tools):
    nodes = {name: {"_target_": f"{my_tools}.add", "isolation": name} for name in ("thread", "process")}
    runtime = build_tools(with_tool(composed, **nodes))
    assert [tool.isolation for tool in runtime.tools if tool.spec.name in nodes] == ["thread", "process"]


def test_a_function_with_arguments_of_its_own_makes_tools(composed, my_tools):
    runtime = build_tools(with_tool(composed, minus={"_target_": f"{my_tools}.make", "name": "minus", "sign": -1}))
    result = asyncio.run(runtime.call(ToolCall(tool="minus", text="", arguments={"a": 2, "b": 3}), CONTEXT))
    assert result.text == "-1"


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "my_tools.bare"}, "'bare' must have a docstring"),
        ({"_target_": "my_tools.nothing"}, "`tools.plus`: `_target_` must be something to import"),
        ({"_target_": "no_such_module.x"}, "`tools.plus`: `_target_` must be something to import"),
        ({"_target_": "my_tools.Fixed"}, "`tools.plus`: The key must be the name of the tool, but that is 'fixed'"),
        ({"_target_": "my_tools.add", "limits": {"deadline": 5}}, "but got 'deadline'. Did you mean `deadline_s`"),
        (
            {"_target_": "my_tools.add", "isolation": "jial"},
            "`isolation` of 'plus' must be one of thread, process, jail",
        ),
        (True, "`tools.plus`: A tool must be a mapping with a `_target_`, but got True"),
    ],
    ids=["no-hints", "no-name", "no-module", "other-name", "limit", "isolation", "no-mapping"],
)
def test_what_is_no_tool_is_refused_by_name(composed, my_tools, node, message):
    with pytest.raises(ConfigError, match=message):
        build_tools(with_tool(composed, plus=node))


def test_a_wrong_key_is_answered_with_those_of_the_chosen_tools():
    problem = explain_bad_overrides(["tools=corpus", "tools.search.index.file=[a.jsonl]"])
    assert "Did you mean `tools.search.index.files`" in problem
    assert explain_bad_overrides(["tools=corpus", "tools.search.index.files=[a.jsonl]"]) is None
    assert "Did you mean `tools.runtime.timeout_s`" in explain_bad_overrides(["tools.runtime.timeout=5"])


def test_hermes_changes_the_format_and_nothing_else(composed):
    default, hermes = (composed(f"rollout={name}").rollout for name in ("default", "hermes"))
    specs = build_tools(composed("tools=search").tools).specs
    built = build(hermes.chat_format, tokenizer=chatml_tokenizer(), specs=specs)
    assert isinstance(built, HermesFormat)
    assert isinstance(built, ChatFormat)
    assert {**default, "chat_format": None} == {**hermes, "chat_format": None}


def test_the_tools_of_deep_search_answer_from_the_world_of_the_data(composed):
    cfg = composed("data=deep_search", "tools=deep_search", "data.task.world.num_things=400", "data.task.world.seed=3")
    runtime, task = build_tools(cfg.tools), build(cfg.data.task)
    assert runtime.tool_names == ("search", "browse")
    shown = task.demonstration(0)
    first = task.solved("train", 0).plan[0]
    result = asyncio.run(runtime.call(ToolCall(tool="search", text=first.argument), CONTEXT))
    assert result.text.startswith(f"[1] {first.argument}\nhttp://")
    assert shown.turns[1].source == "tool"
    assert task.browse == runtime.tools[1]


def test_the_tools_of_deep_search_need_its_data(composed):
    with pytest.raises(ConfigError, match="`world` must be that of a DeepSearchTask, but got None"):
        build_tools(composed("data=trail", "tools=deep_search").tools)


def test_deep_search_does_without_browse(composed):
    overrides = ("data.task.depth=snippet", "data.task.world.num_things=400", "tools.browse=null")
    cfg = composed("data=deep_search", "tools=deep_search", *overrides)
    assert build_tools(cfg.tools).tool_names == ("search",)
    assert build(cfg.data.task).browse is None
