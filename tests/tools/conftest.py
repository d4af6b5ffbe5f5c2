"""One local server for the tests of each file, forgetful between them."""

import pytest

from tests.support.loopback import serve


@pytest.fixture(scope="module")
def shared():
    with serve() as server:
        yield server


@pytest.fixture
def server(shared):
    shared.requests.clear()
    shared.answer, shared.behave = {}, None
    return shared
