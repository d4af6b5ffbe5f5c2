"""How the package is laid out: what lies loose, what stands in circles, how long files, functions and the example are.

    python -m benchmarks.layout [--root CHECKOUT] [--example FILE] [--tests]

Everything is read from the sources, except the import time, which is the median of nine fresh interpreters less that of
as many which import nothing.
"""

import argparse
import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

from benchmarks.support.common import print_result

PACKAGES = ("aepo_lightning", "callbacks")
Graph = dict[str, set[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A file of the package, parsed."""

    name: str
    is_package: bool
    num_lines: int
    tree: ast.Module


def read_modules(root: Path) -> list[Module]:
    """Return the modules of the packages; those of `callbacks/` under their import name."""
    found = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            parts = parts if parts[0] == "aepo_lightning" else ("aepo_lightning", *parts)
            is_package = parts[-1] == "__init__"
            text = path.read_text(encoding="utf-8")
            name = ".".join(parts[:-1] if is_package else parts)
            found.append(
                Module(name=name, is_package=is_package, num_lines=len(text.splitlines()), tree=ast.parse(text))
            )
    return found


def import_graph(modules: Sequence[Module]) -> Graph:
    """Return which modules each module imports, wherever in it, except for type checkers only.

    `from package import name` is an import of the submodule `name` if there is one, else of the package's own file.
    """
    names = {module.name for module in modules}
    graph: Graph = {}
    for module in modules:
        base = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
        graph[module.name] = {
            target for node in _run_time_nodes(module.tree) for target in _targets(node, base) if target in names
        } - {module.name}
        for node in _run_time_nodes(module.tree):
            graph[module.name] -= _packages_only(node, base, names)
    return graph


def _run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")):
            yield child
            yield from _run_time_nodes(child)


def _targets(node: ast.AST, base: Sequence[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        origin = _origin(node, base)
        yield origin
        yield from (f"{origin}.{alias.name}" for alias in node.names)


def _packages_only(node: ast.AST, base: Sequence[str], names: set[str]) -> set[str]:
    """Return the package of a `from package import a, b` in which every name is a submodule."""
    if not isinstance(node, ast.ImportFrom):
        return set()
    origin = _origin(node, base)
    return {origin} if all(f"{origin}.{alias.name}" in names for alias in node.names) else set()


def _origin(node: ast.ImportFrom, base: Sequence[str]) -> str:
    above = base[: len(base) - node.level + 1] if node.level else ()
    return ".".join([*above, *filter(None, [node.module])])


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of two modules or more (Tarjan's algorithm)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []
    numbers = count()

    def visit(name: str) -> None:
        order[name] = low[name] = next(numbers)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in order:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], order[target])
        if low[name] == order[name]:
            start = stack.index(name)
            found.append(sorted(stack[start:]))
            del stack[start:]

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return [each for each in found if len(each) > 1]


def function_lengths(modules: Sequence[Module]) -> dict[str, int]:
    """Return the lines of every function, from `def` to its end, without the docstring."""
    return {
        f"{module.name}:{node.lineno} {node.name}": _num_lines(node)
        - (_num_lines(node.body[0]) if ast.get_docstring(node) else 0)
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def _num_lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def num_layers(root: Path) -> int:
    """Return the layers of import-linter's first contract of that type."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return next(len(contract["layers"]) for contract in contracts if contract["type"] == "layers")


def import_ms(root: Path, rounds: int = 9) -> float:
    """Return what importing the package adds to the start of Python."""

    def timed(program: str) -> float:
        start = perf_counter()
        subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
        return 1e3 * (perf_counter() - start)

    programs = ("pass", f"import sys; sys.path.insert(0, {str(root)!r}); import aepo_lightning")
    times = [[timed(program) for program in programs] for _ in range(rounds)]
    return median(after for _, after in times) - median(before for before, _ in times)


def example_figures(path: Path) -> dict[str, int]:
    """Return the lines of an example, and its statements that import the library."""
    text = path.read_text(encoding="utf-8")
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    own = [node for node in imports if "aepo_lightning" in ast.unparse(node)]
    return {"example_lines": len(text.splitlines()), "example_library_imports": len(own)}


def test_seconds(root: Path) -> float:
    """Return the wall time of the suite."""
    start = perf_counter()
    subprocess.run(["make", "test"], cwd=root, check=True)
    return perf_counter() - start


def measure(root: Path, example: str, with_tests: bool) -> dict[str, Any]:
    """Return every figure of a checkout."""
    modules = read_modules(root)
    loose = [path.stem for path in (root / "aepo_lightning").glob("*.py") if path.stem != "__init__"]
    found = circles(import_graph(modules))
    longest = max(modules, key=lambda module: module.num_lines)
    lengths = function_lengths(modules)
    return {
        "modules": len(modules),
        "loose_modules": len(loose),
        "layers": num_layers(root),
        "circles": len(found),
        "modules_in_circles": found,
        "longest_file_lines": longest.num_lines,
        "longest_file": longest.name,
        "function_lines_p90": quantiles(lengths.values(), n=10)[-1],
        "function_lines_longest": max(lengths.values()),
        "longest_function": max(lengths, key=lambda name: lengths[name]),
        "root_import_ms": round(import_ms(root), 1),
        **example_figures(root / example),
        **({"test_s": round(test_seconds(root), 1)} if with_tests else {}),
        "load": os.getloadavg(),
    }


GOALS = {
    "loose_modules": 3,
    "layers": 6,
    "circles": 0,
    "longest_file_lines": 400,
    "root_import_ms": 50,
    "example_lines": 40,
    "example_library_imports": 3,
}


def main() -> None:
    """Measure, print a line for each figure and the closing one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="a checkout to measure")
    parser.add_argument("--example", default="examples/twenty_lines.py", help="the shortest one, below the checkout")
    parser.add_argument("--tests", action="store_true", help="time `make test`, too")
    arguments = parser.parse_args()
    figures = measure(arguments.root.resolve(), arguments.example, arguments.tests)
    for name, value in figures.items():
        print(f"{name:24} {value}")
    print_result("layout", figures, {name: (figures[name], "<=", bound) for name, bound in GOALS.items()})


if __name__ == "__main__":
    main()
