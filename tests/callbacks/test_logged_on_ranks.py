"""What is logged is the same on every rank, and Lightning is told so: else it reduces it again or warns about it."""

import ast

from tests.support.paths import ROOT

OWNERS = ("self", "module", "pl_module")


def test_everything_logged_says_that_ranks_agree():
    silent, num_calls = [], 0
    for path in [*(ROOT / "aepo_lightning").rglob("*.py"), *(ROOT / "callbacks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _is_log(node.func):
                num_calls += 1
                said = {word.arg for word in node.keywords}
                silent += [] if said >= {"sync_dist", "rank_zero_only"} else [f"{path.name}:{node.lineno}"]
    assert num_calls >= 7
    assert silent == []


def _is_log(function):
    is_attribute = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)
    return is_attribute and function.value.id in OWNERS and function.attr in ("log", "log_dict")
