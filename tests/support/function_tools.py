"""Tools made of functions."""

import asyncio
import threading

from aepo_lightning.contracts.tool import ToolLimits
from aepo_lightning.errors import ToolError
from aepo_lightning.tools import tool


@tool(name="shout", limits=ToolLimits(deadline_s=5.0), version="3")
async def loud(text: str) -> str:
    """Say it loudly.

    Args:
        text: What to say.
    """
    if text == "hang":
        await asyncio.sleep(30)
    return text.upper()


@tool(isolation="thread")
def who(text: str, context) -> str:
    """Name the question.

    Args:
        text: A greeting.
    """
    if text == "fail":
        raise ToolError("nobody")
    return f"{text} {context.question.question_id} {threading.current_thread() is threading.main_thread()}"
