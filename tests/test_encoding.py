"""Text is read and written as UTF-8, whatever the locale of the machine says."""

import ast

from tests.support.paths import ROOT

FILES = sorted(
    path
    for folder in ("aepo_lightning", "callbacks")
    for path in (ROOT / folder).rglob("*.py")
    if "jail" not in path.parts  # it reads what the kernel writes, in ASCII
)


def opens_text(call):
    """Whether a call opens a file as text, by its name and its mode."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("read_text", "write_text"):
        return True
    if name != "open" or not (isinstance(call.func, ast.Name) or isinstance(call.func.value, ast.Name)):
        return False
    strings = [each.value for each in (*call.args, *(word.value for word in call.keywords)) if is_mode(each)]
    is_builtin = isinstance(call.func, ast.Name)
    return bool(strings) and "b" not in strings[-1] if not is_builtin else not any("b" in mode for mode in strings)


def is_mode(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and set(node.value) <= set("rwaxbt+")


def test_every_text_file_is_opened_as_utf8():
    calls = [
        (path, node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and opens_text(node)
    ]
    assert len(calls) > 10
    assert [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, node in calls
        if not any(word.arg == "encoding" for word in node.keywords)
    ] == []
