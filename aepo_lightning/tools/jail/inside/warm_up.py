"""Uses the preloaded packages once: they import parts of themselves and fill caches at first use, not at import."""

import importlib
from collections.abc import Callable, Iterable


def warm_up(packages: Iterable[str]) -> None:
    """Exercise what calls use most.

    Args:
        packages: Names of imported packages; those without a warm-up are left alone.
    """
    for name in packages:
        if name in _WARM_UPS:
            _WARM_UPS[name]()


def _use_numpy() -> None:
    numpy = importlib.import_module("numpy")
    matrix = numpy.array([[2.0, 1.0], [1.0, 3.0]])
    numpy.linalg.det(matrix @ numpy.linalg.inv(matrix))
    numpy.random.default_rng(0).normal(size=4).mean()
    str(matrix)


def _use_sympy() -> None:
    sympy = importlib.import_module("sympy")
    x, y, n = sympy.symbols("x y n")  # names that most code uses
    for integrand in (sympy.sin(x) * sympy.exp(x), x**2 * sympy.cos(x), 1 / (x**4 + 1), sympy.sqrt(x) + x**2):
        sympy.integrate(integrand, x)
    sympy.integrate(sympy.exp(-(x**2)), (x, -sympy.oo, sympy.oo))
    sympy.integrate(sympy.sin(x) ** 2, (x, 0, sympy.pi))
    sympy.solve(x**3 - 6 * x**2 + 11 * x - 6, x)
    sympy.solve([x**2 + y**2 - 25, x - y - 1], [x, y])
    sympy.nsolve(sympy.cos(x) - x, 0.5)
    sympy.simplify((x**2 - 1) / (x - 1) + sympy.sin(x) ** 2 + sympy.cos(x) ** 2)
    sympy.factor(x**4 - 1), sympy.expand((x + y) ** 3), sympy.diff(sympy.log(x) * x, x)
    sympy.limit(sympy.sin(x) / x, x, 0)
    sympy.series(sympy.cos(x), x, 0, 4)
    sympy.summation(1 / n**2, (n, 1, sympy.oo))
    sympy.Matrix([[1, 2], [3, 4]]).inv().eigenvals()
    sympy.factorint(360), sympy.isprime(101), sympy.gcd(x**2 - 1, x - 1)
    str(sympy.N(sympy.pi, 20)), sympy.latex(sympy.sqrt(x)), sympy.parse_expr("2*x + 1"), sympy.binomial(6, 2)


_WARM_UPS: dict[str, Callable[[], None]] = {"numpy": _use_numpy, "sympy": _use_sympy}
