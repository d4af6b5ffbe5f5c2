"""Pages that are given instead of fetched: a page reader for a web in memory, without network and jail."""

from collections.abc import Sequence

from aepo_lightning.contracts.web_page import WebPage, pages_digest
from aepo_lightning.errors import ConfigError, ToolError
from aepo_lightning.tools.browse.page_fetcher import Page


class StoredPages:
    """Finds pages in memory; other addresses are answered as a server answers what it does not have."""

    def __init__(self, pages: Sequence[WebPage]) -> None:
        """Keep pages.

        Args:
            pages: All that can be read, listed or not.

        Raises:
            ConfigError: If two have one address.
        """
        self._by_url = {page.url: page for page in pages}
        if len(self._by_url) != len(pages):
            raise ConfigError(
                f"`pages` must have an address each, but got {len(pages)} pages with {len(self._by_url)} addresses. "
                "Change those that are there twice."
            )
        self.digest = pages_digest(pages)
        """Names the pages."""

    async def fetch(self, url: str) -> Page:
        """Return a page.

        Raises:
            ToolError: If no page has this address.
        """
        page = self._by_url.get(url)
        if page is None:
            raise ToolError("the server answered with status 404.")
        return Page(url=url, kind="text", content=page.text.encode(), charset="utf-8")

    async def close(self) -> None:
        """Nothing is open."""


class PlainText:
    """Reads pages that are text already. Only for pages that nobody can have tampered with: there is no jail."""

    async def __call__(self, page: Page) -> str:
        """Return the text of a page.

        Raises:
            ToolError: If it is of another kind.
        """
        if page.kind != "text":
            raise ToolError(f"pages of the kind {page.kind} cannot be read.")
        return page.content.decode(page.charset or "utf-8", "replace")

    def close(self) -> None:
        """Nothing is held."""
