"""A tool alone behind its runtime: arguments, what the model reads when something is wrong, a deadline, shared calls.

    python examples/tool_alone.py

What a chain of a rollout gets is what is printed here: `ToolRuntime.call` never raises for a call that fails.
"""

import asyncio

from aepo_lightning import Question, ToolContext, ToolRuntime, tool
from aepo_lightning.contracts.tool import ToolCall
from aepo_lightning.errors import ToolError

started = []


@tool(limits={"deadline_s": 0.2, "is_single_flight": True})
async def capital(country: str) -> str:
    """Name the capital of a country.

    Args:
        country: In English.
    """
    started.append(country)
    await asyncio.sleep(3600 if country == "Atlantis" else 0.01)
    if country not in ("France", "Peru"):
        raise ToolError(f"{country} is not in the atlas.")
    return {"France": "Paris", "Peru": "Lima"}[country]


runtime = ToolRuntime(tools=[capital])
question = Question(question_id="q", messages=(), answers=())
calls = {
    "right": ToolCall(tool="capital", text="France"),
    "named argument": ToolCall(tool="capital", text="", arguments={"country": "Peru"}),
    "wrong argument": ToolCall(tool="capital", text="", arguments={"city": "Lima"}),
    "tool's own error": ToolCall(tool="capital", text="Utopia"),
    "beyond the deadline": ToolCall(tool="capital", text="Atlantis"),
    "no such tool": ToolCall(tool="capitol", text="France"),
}


async def main() -> None:
    print("the model is told:", runtime.specs[0].description, runtime.specs[0].parameters["properties"])
    for name, call in calls.items():
        result = await runtime.call(call, ToolContext(question=question, call_index=0))
        print(f"{name}: {result.status}, {result.text!r}")
    started.clear()
    contexts = [ToolContext(question=question, call_index=0, seed_path=(number,)) for number in range(5)]
    results = await asyncio.gather(*(runtime.call(calls["right"], context) for context in contexts))
    print(f"five chains asked the same: {len(results)} answers, the tool ran {len(started)} time(s)")


asyncio.run(main())
