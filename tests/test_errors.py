"""Settings are refused in one way, whatever they belong to."""

import ast

from tests.support.paths import ROOT

OF_DATA = {"VarlenAttention", "Verdict", "TrajectoryResult", "Calibration"}
"""Classes whose constructor takes data rather than settings."""


def plain_refusals(path):
    for owner in ast.walk(ast.parse(path.read_text())):
        if isinstance(owner, ast.ClassDef) and owner.name not in OF_DATA:
            for method in owner.body:
                if isinstance(method, ast.FunctionDef) and method.name in ("__init__", "__post_init__"):
                    for node in ast.walk(method):
                        if isinstance(node, ast.Raise) and "ValueError(" in ast.unparse(node):
                            yield f"{path.relative_to(ROOT)}:{node.lineno} {owner.name}"


def test_what_a_constructor_refuses_is_a_config_error():
    paths = [*(ROOT / "aepo_lightning").rglob("*.py"), *(ROOT / "callbacks").rglob("*.py")]
    assert [found for path in paths for found in plain_refusals(path)] == []
