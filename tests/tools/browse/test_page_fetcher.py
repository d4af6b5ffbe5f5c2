"""Pages from a local server that behaves badly, and addresses that must never be connected to."""

import asyncio
import gzip
import socket

import pytest
from aiohttp import web

from aepo_lightning.errors import ToolError, ToolUnavailableError
from aepo_lightning.tools.browse.addresses import guarded_socket, is_public
from aepo_lightning.tools.browse.page_fetcher import PageFetcher

FORBIDDEN = (
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1"),
    *("::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1"),
    *("::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "::ffff:10.1.2.3"),
    *("2606:4700:4700::1111%eth0", "64:ff9b:1::7f00:1", "::7f00:1", "::ffff:0:7f00:1", "fec0::1", "3fff::1", "5f00::1"),
    *("192.0.0.8", "192.0.0.9", "192.0.0.170", "192.88.99.1", "192.31.196.1", "192.52.193.1", "192.175.48.1"),
    *("198.51.100.1", "203.0.113.1", "0.1.2.3", "2620:4f:8000::1", "2001:4:112::1", "2001:1::1", "2001:3::1"),
    *("2001:20::1", "2001:30::1", "100::1", "100:0:0:1::1", "4000::1", "3ffe::1", "2d00::1", "2002:c058:6301::1"),
    *("2606:4700::5efe:7f00:1", "2606:4700::200:5efe:10.0.0.1", "2606:4700::100:5efe:192.168.0.1", "fe80::5efe:7f00:1"),
    *("2606:4700::300:5efe:169.254.169.254", "::ffff:192.88.99.1", "64:ff9b::c058:6301"),
    *("2001:0:4136:e378:8000:63bf:80ff:fffe", "localhost", "", "nonsense"),
)
PUBLIC = (
    *("8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"),
    *("2606:4700::5efe:8.8.8.8", "2002:808:808::1", "2001:4860:4860::8888", "2a00:1450::1", "192.88.98.1"),
)


@pytest.mark.parametrize("address", FORBIDDEN)
def test_addresses_inside_any_network_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet_are_public(address):
    assert is_public(address)


def fetch(url, **settings):
    fetcher = PageFetcher(**settings)

    async def run():
        try:
            return await fetcher.fetch(url)
        finally:
            await fetcher.close()

    return asyncio.run(run())


def open_socket(info):
    """Any address: the tests' server is on loopback."""
    return socket.socket(*info[:3])


def local(url, **settings):
    return fetch(url, **({"make_socket": open_socket} | settings))


def page(text="<p>hi</p>", content_type="text/html", **fields):
    async def behave(_):
        return web.Response(body=text.encode() if isinstance(text, str) else text, content_type=content_type, **fields)

    return behave


HOSTS = (
    *("127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f000001", "017700000001"),
    *("127.1", "169.254.169.254", "10.0.0.1", "100.64.0.1", "[fd00::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]"),
)


@pytest.mark.parametrize("host", HOSTS)
def test_however_a_forbidden_address_is_written_nothing_is_sent_to_it(server, host):
    port = server.url.rpartition(":")[2]
    with pytest.raises((ToolError, ToolUnavailableError)) as caught:
        fetch(f"http://{host}:{port}/", timeout_s=5.0)
    assert not server.requests
    reasons = ("not on the public internet", "could not be reached", "not one of a web page")
    assert any(reason in str(caught.value) for reason in reasons)


def test_a_name_that_leads_to_a_forbidden_address_is_refused_at_the_moment_of_connecting(server):
    """Whatever the resolver said before: rebinding gains nothing."""
    asked = []

    def first_then_guarded(info):
        asked.append(info[4][0])
        raise OSError("not reached in this test")

    with pytest.raises(ToolUnavailableError):
        fetch(server.url.replace("127.0.0.1", "localhost"), make_socket=first_then_guarded)
    assert asked
    assert not is_public(asked[0])


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest/meta-data", "http://127.0.0.1:1/", "http://10.0.0.1/"]
)
def test_redirects_to_forbidden_addresses_are_refused(server, target):
    def only_the_first(info):
        # The server itself is on loopback; what it redirects to goes through the real guard.
        if info[4][:2] == ("127.0.0.1", int(server.url.rpartition(":")[2])):
            return open_socket(info)
        return guarded_socket(info)

    async def redirect(_):
        raise web.HTTPFound(target)

    server.behave = redirect
    with pytest.raises(ToolError, match="the address is not on the public internet"):
        fetch(server.url, make_socket=only_the_first)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://example.org/x", "gopher://example.org"])
def test_redirects_to_other_protocols_are_refused(server, target):
    async def redirect(_):
        return web.Response(status=302, headers={"Location": target})

    server.behave = redirect
    with pytest.raises(ToolError, match="must begin with http"):
        local(server.url)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org",
        "javascript:alert(1)",
        "",
        "not an address",
        "http://",
        "//example.org",
    ],
)
def test_what_is_no_web_address_is_refused(url):
    with pytest.raises(ToolError, match="must begin with http"):
        fetch(url)


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("http://user:password@example.org/", "must not hold a password"),
        ("http://example.org/" + "x" * 3000, "too long"),
        ("http://[broken", "not one of a web page"),
    ],
    ids=["password", "long", "broken"],
)
def test_odd_addresses_are_refused(url, match):
    with pytest.raises(ToolError, match=match):
        fetch(url)


def test_a_page_comes_with_its_kind_and_charset(server):
    server.behave = page("é".encode("latin-1"), charset="latin-1")
    found = local(server.url)
    assert (found.kind, found.content, found.charset, found.is_cut) == ("html", b"\xe9", "latin-1", False)
    server.behave = page(b"%PDF-", content_type="application/pdf")
    assert local(server.url).kind == "pdf"


def test_redirects_are_followed_and_counted(server):
    async def redirect(request):
        step = int(request.query.get("n", 0))
        if step == 3:
            return web.Response(text="there", content_type="text/plain")
        raise web.HTTPFound(f"/?n={step + 1}")

    server.behave = redirect
    found = local(server.url)
    assert (found.content, found.url) == (b"there", f"{server.url}/?n=3")
    with pytest.raises(ToolError, match="redirects more than 2 times"):
        local(server.url, max_redirects=2)


@pytest.mark.parametrize("kind", ["image/png", "application/zip", "video/mp4", "application/octet-stream"])
def test_other_types_are_not_read(server, kind):
    server.behave = page(b"x", content_type=kind)
    with pytest.raises(ToolError, match=f"pages of the type {kind} cannot be read"):
        local(server.url)


async def endless(request):
    response = web.StreamResponse(headers={"Content-Type": "text/html"})
    await response.prepare(request)
    while True:
        await response.write(b"x" * 65536)


async def bomb(_):
    body = gzip.compress(b"\0" * (50 << 20))
    return web.Response(body=body, headers={"Content-Type": "text/html", "Content-Encoding": "gzip"})


@pytest.mark.parametrize("behave", [endless, bomb], ids=["endless", "gzip-bomb"])
def test_pages_without_end_are_cut(server, behave):
    server.behave = behave
    found = local(server.url, max_bytes=200_000)
    assert (len(found.content), found.is_cut) == (200_000, True)


def test_long_pdf_files_are_refused(server):
    server.behave = page(b"x" * 1000, content_type="application/pdf")
    with pytest.raises(ToolError, match="longer than 100 bytes"):
        local(server.url, max_bytes=100)


async def drip(request):
    response = web.StreamResponse(headers={"Content-Type": "text/html"})
    await response.prepare(request)
    for _ in range(1000):
        await response.write(b"x")
        await asyncio.sleep(0.05)
    return response


def test_a_page_that_drips_is_given_up(server):
    server.behave = drip
    with pytest.raises(ToolUnavailableError, match="did not arrive in time"):
        local(server.url, timeout_s=2.0)


@pytest.mark.parametrize(("status", "kind"), [(404, ToolError), (500, ToolError), (503, ToolUnavailableError)])
def test_what_the_server_says_is_told(server, status, kind):
    server.behave = page(status=status)
    with pytest.raises(kind, match=f"status {status}"):
        local(server.url)


def test_proxies_of_the_environment_are_not_used(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server.behave = page()
    assert local(server.url).content == b"<p>hi</p>"
