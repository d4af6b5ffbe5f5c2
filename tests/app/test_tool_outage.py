"""The command with a tool that is down: it ends with one message and status 1."""

import pytest

from tests.support.killed_runs import train


@pytest.mark.slow
def test_an_outage_ends_the_command_with_one_message(tmp_path):
    down = ["tools.search={_target_: tests.support.hung_parts.search_that_is_down}", "data.round_trip=false"]
    settings = ["+tools.runtime.max_unavailable_s=0.0", "+tools.runtime.on_outage=stop"]
    status, output = train(tmp_path / "run", *down, *settings)
    assert status == 1, output[-3000:]
    assert output.count("ToolOutageError: Tool(search) must be available for a run to go on") == 1
    assert "continue with ckpt_path=last" in output
    assert "Traceback" not in output
