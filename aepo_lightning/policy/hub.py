"""Whether the Hugging Face Hub answers, looked for once: its client tries for half a minute for each file.

A connection says it, to the Hub or to the proxy before it. Where there is none, only what was downloaded before is of
use, and the client finds that at once if it is told not to ask.
"""

import logging
import socket
import time
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants

logger = logging.getLogger(__name__)

_CONNECT_S = 5.0
_PAUSE_S = 1.0
_LIMIT_S = 12.0
"""For both tries: looking up a name has no bound of its own."""
_PORTS = {"http": 80, "https": 443}


def why_offline(name: str) -> str:
    """Return why nothing can be downloaded, or nothing if the Hub answers.

    Args:
        name: Of the model, for the log.
    """
    if constants.HF_HUB_OFFLINE:
        return "`HF_HUB_OFFLINE` is set"
    host, port = _first_stop(constants.ENDPOINT, getproxies())
    reason = _why_unreachable(host, port)
    if not reason:
        return ""
    logger.warning(
        "%s cannot be reached (%s): of %s, only what was downloaded before is used. `HF_HUB_OFFLINE=1` says so without "
        "a look.",
        host,
        reason,
        name,
    )
    return f"{host} cannot be reached ({reason})"


def _first_stop(endpoint: str, proxies: dict[str, str]) -> tuple[str, int]:
    """Return host and port of the first connection to an address."""
    target = urlsplit(endpoint)
    proxy = proxies.get(target.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return target.hostname or "", target.port or _PORTS.get(target.scheme, 1080)


def _why_unreachable(host: str, port: int) -> str:
    """Return what the second of two connections failed with, or nothing."""
    failures = ["no answer"]

    def connect() -> None:
        for pause_s in (0.0, _PAUSE_S):  # one packet may be lost
            time.sleep(pause_s)
            try:
                with socket.create_connection((host, port), _CONNECT_S):
                    failures.clear()
                    return
            except OSError as error:
                failures[:] = [str(error)]

    thread = Thread(target=connect, name="aepo-hub", daemon=True)
    thread.start()
    thread.join(_LIMIT_S)
    return failures[0] if failures else ""
