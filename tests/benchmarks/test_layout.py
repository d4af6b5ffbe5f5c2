from benchmarks.layout import circles, example_figures, function_lengths, import_graph, read_modules
from tests.support.paths import ROOT


def write(root, **files):
    for name, text in files.items():
        path = root / "aepo_lightning" / (name.replace("__", "/", 1) + ".py" if name != "__init__" else "__init__.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_modules(root)


def test_a_circle_is_found_whatever_way_it_is_imported(tmp_path):
    modules = write(
        tmp_path,
        a="from aepo_lightning import b",
        b="import aepo_lightning.c",
        c="def late():\n    from .a import x",
        d="from aepo_lightning.a import x",
    )
    assert circles(import_graph(modules)) == [["aepo_lightning.a", "aepo_lightning.b", "aepo_lightning.c"]]


def test_imports_for_type_checkers_are_no_circle(tmp_path):
    modules = write(
        tmp_path, a="if TYPE_CHECKING:\n    from aepo_lightning.b import x", b="from aepo_lightning.a import x"
    )
    assert import_graph(modules) == {"aepo_lightning.a": set(), "aepo_lightning.b": {"aepo_lightning.a"}}
    assert circles(import_graph(modules)) == []


def test_a_docstring_is_no_part_of_a_functions_length(tmp_path):
    (module,) = write(tmp_path, a='def f():\n    """One.\n\n    Two.\n    """\n    return 1\n')
    assert function_lengths([module]) == {"aepo_lightning.a:1 f": 2}


def test_the_package_has_no_circle_and_the_example_is_short():
    assert circles(import_graph(read_modules(ROOT))) == []
    figures = example_figures(ROOT / "examples/twenty_lines.py")
    assert figures["example_lines"] <= 40
    assert figures["example_library_imports"] <= 3
