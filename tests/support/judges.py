"""A judge on loopback whose replies a test writes, and judges that ask it."""

import asyncio
import json
from contextlib import contextmanager

from aiohttp import web

from aepo_lightning.contracts.checker import Claim
from aepo_lightning.rewards.judge import JudgeLimits, LLMJudge
from tests.support.loopback import serve

QUICK = JudgeLimits(max_attempts=1, backoff_s=0.0, deadline_s=60.0, timeout_s=30.0)
USAGE = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}


def claim(answer="Paris", golds=("Lyon",), question="Which city?", **fields):
    return Claim(question=question, golds=golds, answer=answer, **fields)


def verdict(word="correct", reason="Because."):
    return json.dumps({"reason": reason, "verdict": word})


def completion(content, finish="stop", **fields):
    """What a server answers with whose model wrote `content`."""
    message = {"role": "assistant", "content": content} | fields.pop("message", {})
    choice = {"index": 0, "finish_reason": finish, "message": message}
    return {"id": "c", "object": "chat.completion", "model": "m", "choices": [choice], "usage": USAGE} | fields


@contextmanager
def judge_server(*answers):
    """Serve each answer once, the last one for ever: a dict as JSON, else what a function of the request returns."""
    left = list(answers)

    async def behave(request):
        answer = left.pop(0) if len(left) > 1 else left[0]
        return web.json_response(answer) if isinstance(answer, dict) else await answer(request)

    with serve() as server:
        server.behave = behave
        yield server


def judge_at(server, **settings):
    return LLMJudge(f"{server.url}/v1", "m", **({"limits": QUICK} | settings))


def judged(judge, *claims):
    """Return the verdicts on claims that come one after another."""

    async def run():
        return [await judge(each) for each in claims or (claim(),)]

    return asyncio.run(run())


def judged_together(judge, *claims):
    async def run():
        return await asyncio.gather(*map(judge, claims))

    return asyncio.run(run())


def bodies(server):
    """Return what was sent to a server, request by request."""
    return [body for *_, body in server.requests]
