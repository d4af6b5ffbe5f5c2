"""A headless Chromium, driven over its debugging protocol by what the library has anyway.

`AEPO_CHROMIUM` names the program. Without it, that of `make browser` or one on the path is taken; without any, tests
that need it are skipped.
Where a folder `al2023/lib` lies beside the program, as the npm package `@sparticuz/chromium` unpacks itself, it has
libraries that the system may lack. Fonts are the system's.
"""

import asyncio
import base64
import os
import shutil
import time
from pathlib import Path

import aiohttp

from tests.support.paths import ROOT

FETCHED = ROOT / "models" / "browser"
FLAGS = (
    *("--headless=shell", "--no-sandbox", "--no-zygote", "--single-process", "--disable-gpu"),
    *("--disable-dev-shm-usage", "--remote-debugging-port=0", "--hide-scrollbars", "--force-color-profile=srgb"),
)
START_S = 60.0


def find_chromium():
    """The program, or None."""
    named = os.environ.get("AEPO_CHROMIUM")
    if named:
        return Path(named)
    if (FETCHED / "chromium").is_file():
        return FETCHED / "chromium"
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((path for path in map(shutil.which, names) if path), None)
    return None if found is None else Path(found)


class Browser:
    """One page of a browser. Use as a context manager; `log` has what the page reported."""

    def __init__(self, program, folder, size=(1400, 900)):
        self._program, self._folder, self._size = program, folder, size
        self._runner = asyncio.Runner()
        self._answers, self._number = {}, 0
        self.log = []
        self.requests = []

    def __enter__(self):
        self._runner.run(self._start())
        return self

    def __exit__(self, *_):
        self._runner.run(self._stop())
        self._runner.close()

    def open(self, url, ready="document.documentElement?.dataset.ready === 'true'"):
        """Go to an address and wait until the page says that it is there; return the seconds that it took."""
        self.call("Page.navigate", url="about:blank")
        began = time.monotonic()
        self.call("Page.navigate", url=url)
        self.wait_for(ready)
        return time.monotonic() - began

    def wait_for(self, condition, within=60.0):
        deadline = time.monotonic() + within
        while not self.value(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"{condition} did not come: {self.log}"
            time.sleep(0.02)

    def value(self, expression):
        """What an expression gives in the page, awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector):
        self.value(
            f"document.querySelector({selector!r}).dispatchEvent(new MouseEvent('click', {{bubbles: true}})), null"
        )

    def press(self, key):
        code = {"Enter": 13, "Escape": 27}.get(key, 0)
        text = key if len(key) == 1 else "\r" if key == "Enter" else ""
        for kind in ("keyDown", "keyUp"):
            fields = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **fields)

    def undisturbed(self, measure):
        """What something takes, in seconds: less the time in which other programs had the processors that threads of
        this browser were ready to run on, but no less than they ran."""
        before = self._processor_s()
        seconds = measure()
        ran, waited = (after - earlier for after, earlier in zip(self._processor_s(), before, strict=True))
        return min(seconds, max(ran, seconds - waited))

    def _processor_s(self):
        """How long the browser's threads have run, and how long they were ready to; 0 where nobody counts."""
        files = list(Path(f"/proc/{self._process.pid}/task").glob("*/schedstat"))
        if not files:
            return 0.0, 0.0
        ran, waited, _ = zip(*(map(int, file.read_text().split()) for file in files), strict=True)
        return sum(ran) / 1e9, sum(waited) / 1e9

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def call(self, method, **params):
        """Ask the browser for something, and return its answer."""
        return self._runner.run(self._call(method, params))

    async def _start(self):
        beside = self._program.parent
        environment = {**os.environ, "HOME": str(self._folder)}
        if (beside / "al2023" / "lib").is_dir():
            environment["LD_LIBRARY_PATH"] = str(beside / "al2023" / "lib")
        self._process = await asyncio.create_subprocess_exec(
            *(str(self._program), *FLAGS, f"--user-data-dir={self._folder}", "about:blank"),
            env=environment,
            stderr=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )
        port_file, deadline = Path(self._folder) / "DevToolsActivePort", time.monotonic() + START_S
        while not (port_file.is_file() and port_file.read_text().strip()):
            assert self._process.returncode is None, f"{self._program} ended"
            assert time.monotonic() < deadline, f"{self._program} did not start"
            await asyncio.sleep(0.02)
        port = port_file.read_text().split()[0]
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            target = next(each for each in await answer.json(content_type=None) if each["type"] == "page")
        self._socket = await self._session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self._call(f"{domain}.enable", {})
        width, height = self._size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self._call("Emulation.setDeviceMetricsOverride", metrics)

    async def _stop(self):
        await self._socket.close()
        await self._session.close()
        self._process.kill()
        await self._process.wait()

    async def _call(self, method, params):
        self._number += 1
        number = self._number
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            message = await asyncio.wait_for(self._socket.receive_json(), 120)
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._note(message)

    def _note(self, message):
        kind, params = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.log.append(params["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif kind == "Log.entryAdded":
            self.log.append(params["entry"]["text"])
        elif kind == "Runtime.consoleAPICalled":
            self.log.append(str([each.get("value") for each in params["args"]]))
        elif kind == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
