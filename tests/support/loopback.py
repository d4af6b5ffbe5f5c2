"""A server on loopback that answers as a test wants, in a thread of its own."""

import asyncio
import json
import threading
from contextlib import contextmanager

from aiohttp import web


class Server:
    """Answers with `answer` as JSON, unless `behave` is set: it gets the request and returns the response."""

    def __init__(self):
        self.requests = []
        self.answer = {}
        self.behave = None
        self.url = ""

    async def handle(self, request):
        body = await request.text()
        self.requests.append(
            (request.method, request.path_qs, dict(request.headers), json.loads(body) if body else None)
        )
        if self.behave is not None:
            return await self.behave(request)
        return web.json_response(self.answer)


async def _end(runner):
    await runner.cleanup()
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


@contextmanager
def serve():
    server, loop, ready = Server(), asyncio.new_event_loop(), threading.Event()

    async def start():
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", server.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        return runner

    runner = None

    def run():
        nonlocal runner
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield server
    asyncio.run_coroutine_threadsafe(_end(runner), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()
