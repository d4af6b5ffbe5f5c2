"""A server on loopback that answers as a script says: what the pool's behaviour is tested against, without vLLM."""

import asyncio
import math
import threading
from contextlib import contextmanager, suppress

import torch
from aiohttp import web
from safetensors.torch import load_file

from aepo_lightning.engines.adapters import merged_with_file
from aepo_lightning.engines.vllm.entropy import pack_entropies
from aepo_lightning.engines.vllm_server.admission import INSTALL
from aepo_lightning.engines.vllm_server.publication_files import READ_CHECK

ENTROPY = 1.25
CODE = int(pack_entropies(torch.tensor([ENTROPY]))[0])
TEXTS = {
    "garbage": "<html>bad gateway</html>",
    "other_json": '{"answer": 42}',
    "deep_json": "[" * 100_000 + "]" * 100_000,
}
UPDATE_STEPS = [
    "/pause",
    "/init_weight_transfer_engine",
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/reset_prefix_cache",
    "/resume",
]


def token_at(position):
    return 2 + 7 * position % 250


class FakeServer:
    """Set its attributes to change how it behaves; `script` names the behaviour for a request's body."""

    def __init__(self):
        self.script = lambda _: "ok"
        self.is_healthy = True
        self.is_silent = False
        self.max_model_len = 160
        self.version = "default"
        self.can_install = self.can_read = self.can_start = True
        self.weights = {}
        self.calls = []
        self.requests = []
        self.aborted = []
        self.num_running = self.max_running = self.num_flooded = 0
        self.open = threading.Event()
        """Requests of the behaviours `wait` and `wait_and_fail` end when it is set."""
        self.url = ""
        self._incoming = {}

    @property
    def paths(self):
        return [path for path, _ in self.calls]

    async def handle(self, request):
        body = await request.json() if request.can_read_body else {}
        self.calls.append((request.path, body))
        if self.is_silent:
            await asyncio.sleep(60)
        if request.path == "/health":
            return web.Response(status=200 if self.is_healthy else 503)
        if request.path == "/inference/v1/generate":
            return await self._generate(request, body)
        answer = getattr(self, "_" + request.path.rsplit("/", 1)[-1], lambda _: {})(body)
        return answer if isinstance(answer, web.Response) else web.json_response(answer)

    async def _generate(self, request, body):
        is_try_out = body["token_ids"] == [0]
        if not is_try_out:
            self.requests.append(body)
        behaviour = "ok" if is_try_out else self.script(body)
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        try:
            return await self._behave(behaviour, request, body)
        finally:
            self.num_running -= 1

    async def _behave(self, behaviour, request, body):
        if isinstance(behaviour, int):
            return web.Response(status=behaviour, text="scripted")
        if behaviour == "hang":
            await asyncio.sleep(60)
        if behaviour in ("wait", "wait_and_fail"):
            while not self.open.is_set():
                await asyncio.sleep(0.005)
            if behaviour == "wait_and_fail":
                return web.Response(status=500)
        if behaviour == "close":
            request.transport.close()
        if behaviour in TEXTS:
            return web.Response(text=TEXTS[behaviour])
        if behaviour == "elsewhere":
            return web.Response(status=307, headers={"Location": self.url + "/inference/v1/generate?again"})
        if behaviour == "flood":
            return await self._flood(request)
        return web.json_response(self._spoil(behaviour, self._reply(body)))

    async def _flood(self, request):
        reply = web.StreamResponse()
        await reply.prepare(request)
        with suppress(ConnectionError):
            while True:
                await reply.write(b" " * 65_536)
                self.num_flooded += 65_536
        return reply

    def _reply(self, body):
        sampling = body["sampling_params"]
        start, number = len(body["token_ids"]), sampling["max_tokens"]
        tokens = [token_at(position) for position in range(start, start + number)]
        # Without our sampler ranks are ranks.
        rank = CODE if INSTALL in [b.get("method") for _, b in self.calls] and self.can_install else 1
        num_top = sampling["logprobs"]
        content = [
            {
                "token_id": token,
                "logprob": -0.5,
                "rank": rank,
                "top_logprobs": [{"token_id": token, "logprob": -0.5}]
                + [{"token_id": 260 + i, "logprob": -2.0 - i} for i in range(num_top - 1)],
            }
            for token in tokens
        ]
        choice = {
            "token_ids": tokens,
            "finish_reason": "length",
            "logprobs": {"content": content},
            "weight_versions": [{"version": self.version, "start": 0, "end": number}],
        }
        usage = {"prompt_tokens": start, "completion_tokens": number}
        usage["prompt_tokens_details"] = {"cached_tokens": start // 32 * 32}
        return {"request_id": "generate-tokens-" + body["request_id"], "choices": [choice], "usage": usage}

    def _spoil(self, behaviour, reply):
        choice = reply["choices"][0]
        content = choice["logprobs"]["content"]
        number = {"short_of_max": -1, "no_tokens": 0}.get(behaviour)
        if number is not None:
            del choice["token_ids"][number:], content[number:]
            reply["usage"]["completion_tokens"] = len(content)
        spoil = {
            "short": lambda: choice["token_ids"].pop(),
            "overclaimed": lambda: (choice.update(finish_reason="stop"), reply["usage"].update(completion_tokens=99)),
            "no_logprobs": lambda: choice.update(logprobs=None),
            "few_logprobs": lambda: content.pop(),
            "not_a_number": lambda: content[-1].update(logprob=-9999.0),
            "a_nan_of_json": lambda: content[-1].update(logprob=math.nan),
            "a_float_token": lambda: choice["token_ids"].append(float(choice["token_ids"].pop())),
            "of_another_request": lambda: reply.update(request_id="generate-tokens-other"),
            "no_versions": lambda: choice.pop("weight_versions"),
            "plain_rank": lambda: content[-1].update(rank=3),
            "outside": lambda: (
                choice["token_ids"].append(choice["token_ids"].pop() + 10**5),
                content[-1].update(token_id=choice["token_ids"][-1]),
            ),
            "aborted": lambda: choice.update(finish_reason="abort"),
            "stale": lambda: choice["weight_versions"][0].update(version="older"),
        }
        spoil.get(behaviour, lambda: None)()
        return reply

    def _models(self, _):
        return {"data": [{"max_model_len": self.max_model_len}]}

    def _weight_info(self, _):
        return {"weight_version": self.version}

    def _abort_requests(self, body):
        self.aborted += body["request_ids"]
        return {}

    def _collective_rpc(self, body):
        if body["method"] == INSTALL and not self.can_install:
            return web.Response(status=500, text="no such method")
        if body["method"] == READ_CHECK:
            return {"results": [{"problem": "" if self.can_read else "no such file"}]}
        return {"results": [{}]}

    def _start_weight_update(self, _):
        return {} if self.can_start else web.Response(status=500, text="already active")

    def _update_weights(self, body):
        info = body["update_info"]
        weights = load_file(info["path"])
        if info["adapter"]:
            weights = dict(merged_with_file(weights, info["adapter"], torch.device("cpu")))
        self._incoming |= weights
        return {}

    def _finish_weight_update(self, body):
        self.can_start = True
        self.weights, self._incoming = self._incoming, {}
        self.version = body.get("weight_version", self.version)
        return {}

    def _reset_prefix_cache(self, _):
        return {"success": True}


@contextmanager
def serve(*servers):
    """Run fake servers in a thread and yield them with their addresses."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runners = [asyncio.run_coroutine_threadsafe(_start(server), loop).result() for server in servers]
    try:
        yield servers[0] if len(servers) == 1 else servers
    finally:
        for runner in runners:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _start(server):
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    return runner
