"""The text of pages, worked out in the jail: hostile markup can keep a parser busy for ever or fill the memory."""

import base64
import json
from importlib.util import find_spec
from typing import Protocol, runtime_checkable

from aepo_lightning.errors import ConfigError, ToolError, ToolUnavailableError
from aepo_lightning.tools.browse.page_fetcher import Page
from aepo_lightning.tools.jail import ExitKind, PoolSettings, PythonPool

_PROGRAM = """
import base64, io, json, sys

def html(data, charset, max_chars, max_pages):
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding
    try:
        b"x".decode(charset or "", "replace")
    except (LookupError, ValueError):
        charset = None
    text = bytes_to_str(data, charset or detect_encoding(data))
    return extract_plain_text(text, main_content=True, alt_texts=False, links=False)

def pdf(data, charset, max_chars, max_pages):
    import pypdf
    reader = pypdf.PdfReader(io.BytesIO(data))
    pieces, length = [], 0
    for page in reader.pages[:max_pages]:
        pieces.append(page.extract_text())
        length += len(pieces[-1])
        if length > max_chars:
            break
    return "\\n".join(pieces)

def text(data, charset, max_chars, max_pages):
    try:
        return data.decode(charset or "utf-8", "replace")
    except (LookupError, ValueError):
        return data.decode("utf-8", "replace")

job = json.loads(sys.stdin.readline())
data = base64.b64decode(sys.stdin.read())
try:
    found = {"html": html, "pdf": pdf, "text": text}[job.pop("kind")](data, **job)
    answer = {"text": found[:job["max_chars"]]}
except Exception as error:
    answer = {"problem": f"{type(error).__name__}: {error}"[:200]}
print(json.dumps(answer))
"""
_BYTES_PER_CHAR = 12  # of JSON: a character beyond 16 bits is written as two
_MAX_INPUT_BYTES = 8 << 20  # as much as a worker takes
_MODULES = ("resiliparse.extract.html2text", "resiliparse.parse.encoding", "pypdf")


@runtime_checkable
class Extractor(Protocol):
    """Turns pages into text."""

    async def __call__(self, page: Page) -> str:
        """Return the text of a page.

        Raises:
            ToolError: If the page cannot be read.
        """
        ...

    def close(self) -> None:
        """Free what the extractor holds."""
        ...


class JailedExtractor:
    """Reads HTML, PDF and text in the Python pool's jail."""

    def __init__(
        self, *, max_chars: int = 100_000, max_pages: int = 50, timeout_s: float = 10.0, num_workers: int = 2
    ) -> None:
        """Keep the limits; the pool opens at the first page.

        Args:
            max_chars: Longer texts are cut.
            max_pages: Of a PDF file; the rest is left out.
            timeout_s: For one page.
            num_workers: Pages that are read at the same time.
        """
        self._max_chars, self._max_pages = max_chars, max_pages
        self._pool = PythonPool(
            PoolSettings(
                num_workers=num_workers,
                timeout_s=timeout_s,
                preload=_MODULES,
                max_output_bytes=_BYTES_PER_CHAR * max_chars + 1000,
                max_input_bytes=_MAX_INPUT_BYTES,
            )
        )

    async def start(self) -> None:
        """Open the pool.

        Raises:
            ConfigError: If no isolation can be had, or the packages that read pages are missing.
        """
        missing = [name for name in _MODULES if find_spec(name.partition(".")[0]) is None]
        if missing:
            raise ConfigError(f"Pages need the `browse` extra: pip install 'aepo-lightning[browse]' (no {missing[0]}).")
        await self._pool.start()

    async def __call__(self, page: Page) -> str:
        """Return the text of a page.

        Raises:
            ToolError: If the page cannot be read.
            ToolUnavailableError: If the jail failed.
        """
        job = {
            "kind": page.kind,
            "charset": page.charset,
            "max_chars": self._max_chars,
            "max_pages": self._max_pages,
        }
        stdin = json.dumps(job) + "\n" + base64.b64encode(page.content).decode()
        if len(stdin) > _MAX_INPUT_BYTES:
            raise ToolError(f"the page of {len(page.content)} bytes is too long to be read.")
        done = await self._pool.run(_PROGRAM, stdin=stdin)
        if done.exit is ExitKind.LOST:
            raise ToolUnavailableError("the page could not be read: the sandbox failed.")
        if done.exit is not ExitKind.OK:
            raise ToolError(f"the page could not be read (its reader ended by {done.exit}).")
        answer: dict[str, str] = json.loads(done.stdout)
        if "problem" in answer:
            raise ToolError(f"the page could not be read ({answer['problem']}).")
        return answer["text"]

    def close(self) -> None:
        """End the workers."""
        self._pool.close()
