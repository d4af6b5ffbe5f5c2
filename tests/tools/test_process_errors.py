"""What goes wrong with processes is an error of the tool, except that a function cannot be sent at all."""

import pytest

from aepo_lightning.errors import ToolError, ToolUnavailableError
from aepo_lightning.processes.errors import BrokenCallError, CannotSendError, NoProcessError
from aepo_lightning.tools.process_errors import process_errors


@pytest.mark.parametrize(
    ("error", "kind"),
    [(NoProcessError, ToolUnavailableError), (BrokenCallError, ToolError), (CannotSendError, CannotSendError)],
)
def test_each_error_of_the_processes_has_its_meaning_for_a_tool(error, kind):
    with pytest.raises(kind, match="as it said") as raised, process_errors():
        raise error("as it said")
    assert type(raised.value) is kind
