"""The pages on this machine: made when they are asked for, so that a run which is still going on shows what it has."""

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from aepo_lightning.app.saved_trees import RolloutFiles, present_rollouts
from aepo_lightning.app.view.folder import OpenedFolder
from aepo_lightning.app.view.pages import Live, Shown, make_page
from aepo_lightning.app.view.updates import updates_path
from aepo_lightning.errors import AepoError, ConfigError

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
_KEPT_PAGES = 8
_NOTHING_YET = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="3">'
    "<title>aepo-view</title><p>No rollout has begun in this folder. This page looks again every 3 seconds.</p>\n"
)


class Pages:
    """Makes pages, one at a time, and keeps the last ones."""

    def __init__(self, folder: OpenedFolder) -> None:
        self.folder = folder
        self._kept: dict[tuple[str, str], str] = {}
        self._lock = Lock()

    def present(self) -> list[dict[str, str]]:
        """Return what there is: names, and versions that change when a file does."""
        return [{"name": each.name, "version": self._version(each)} for each in present_rollouts(self.folder.path)]

    def page(self, name: str) -> str | None:
        """Return the page of an iteration or a benchmark; None if there is none."""
        chosen = next((each for each in present_rollouts(self.folder.path) if each.name == name), None)
        if chosen is None:
            return None
        with self._lock:
            key = (name, self._version(chosen))
            if key not in self._kept:
                trees = self.folder.trees(chosen)
                shown = Shown(
                    unfinished=self.folder.unfinished(chosen, trees),
                    updates=self.folder.updates(chosen),
                    live=Live(name=name, version=key[1]),
                )
                self._kept[key] = make_page(self.folder, name, trees, shown)
                while len(self._kept) > _KEPT_PAGES:
                    self._kept.pop(next(iter(self._kept)))
            return self._kept[key]

    def _version(self, rollout: RolloutFiles) -> str:
        found = []
        for path in (*rollout.paths, *rollout.steps, updates_path(self.folder.path, rollout.name)):
            with suppress(FileNotFoundError):  # steps go when the last tree is finished
                stat = path.stat()
                found.append(f"{stat.st_size:x}.{stat.st_mtime_ns:x}")
        return "-".join(found)


class Handler(BaseHTTPRequestHandler):
    """Answers requests of browsers on this machine, and of nobody else."""

    def __init__(self, *args: Any, pages: Pages) -> None:
        self._pages = pages
        super().__init__(*args)

    def do_GET(self) -> None:
        """Answer with a page, the list of pages, or the newest page."""
        if not self._is_asked_here():
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "This server answers to names of this machine only.\n")
            return
        path = unquote(urlsplit(self.path).path)
        try:
            self._find(path)
        except AepoError as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", f"{type(error).__name__}: {error}\n")

    def _find(self, path: str) -> None:
        if path == "/":
            present = self._pages.present()
            if not present:
                self._answer(HTTPStatus.OK, "text/html", _NOTHING_YET)
                return
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", f"/{quote(present[-1]['name'])}.html")
            self.end_headers()
        elif path == "/rollouts.json":
            self._answer(HTTPStatus.OK, "application/json", json.dumps(self._pages.present()))
        elif path.endswith(".html") and (page := self._pages.page(path[1:].removesuffix(".html"))) is not None:
            self._answer(HTTPStatus.OK, "text/html", page)
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", "There is no such page. / leads to the newest one.\n")

    def _is_asked_here(self) -> bool:
        """Return whether the request names this machine: a foreign page whose name leads here does not."""
        host, _, _ = self.headers.get("Host", "").partition(":")  # without a port where it is 80
        return host in (HOST, "localhost")

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Log requests where somebody looks for them, not on the terminal."""
        logger.debug(format, *args)


def open_server(folder: OpenedFolder, port: int) -> ThreadingHTTPServer:
    """Return a server on the loopback address, which serves once it is told to.

    Args:
        folder: Whose trees are shown.
        port: 0 takes any.

    Raises:
        ConfigError: If the port cannot be had.
    """
    try:
        return ThreadingHTTPServer((HOST, port), partial(Handler, pages=Pages(folder)))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"`--port` must be free, but got {port}: {error}. Choose another, or 0 for any.") from error


def serve(folder: OpenedFolder, port: int, say: Callable[[str], object]) -> None:
    """Serve pages until the command is ended.

    Args:
        folder: As for `open_server`.
        port: As for `open_server`.
        say: Is told the address.

    Raises:
        ConfigError: As `open_server`.
    """
    with open_server(folder, port) as server:
        say(f"http://{HOST}:{server.server_port}/  (Ctrl+C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
