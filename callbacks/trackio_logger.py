"""Trackio as a logger of Lightning, which has none: a local dashboard of runs, started by `trackio show`."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from aepo_lightning.errors import ConfigError


class TrackioLogger(Logger):
    """Keeps numbers, pictures and tables in Trackio's database, on this machine unless told otherwise.

    The database lies where `TRACKIO_DIR` says when the process starts, else in the cache of Hugging Face.
    """

    def __init__(self, project: str = "aepo-lightning", name: str | None = None, **options: Any) -> None:
        """Keep the names; the run begins with the first thing that is logged.

        Args:
            project: Under which runs stand together.
            name: Of the run; of a run that has one, what is logged is added. None chooses a new name.
            options: Of `trackio.init`, such as `space_id`.

        Raises:
            ConfigError: If trackio is not installed.
        """
        super().__init__()
        try:
            import trackio
        except ImportError as error:
            raise ConfigError(
                "`logger=trackio` needs the package trackio: pip install aepo-lightning[trackio]."
            ) from error
        self._trackio = trackio
        self._project, self._name, self._options = project, name, options

    @cached_property
    def _run(self) -> Any:
        resume = "never" if self._name is None else "allow"
        run = self._trackio.init(project=self._project, name=self._name, resume=resume, embed=False, **self._options)
        self._name = run.name
        return run

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Trackio's run."""
        return self._run

    @property
    @override
    def name(self) -> str:
        """Of the project."""
        return self._project

    @property
    @override
    def version(self) -> str:
        """Of the run."""
        return str(self._run.name)

    @override
    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Add to the configuration of the run."""
        self.experiment.config.update(vars(params) if isinstance(params, Namespace) else params)

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers, or what Trackio shows otherwise."""
        self.experiment.log(dict(metrics), step=step)

    def log_image(self, key: str, images: Sequence[Any], step: int | None = None) -> None:
        """Log pictures as arrays of rows, columns and colours; more than one are numbered."""
        names = [key] if len(images) == 1 else [f"{key}_{number}" for number in range(1, len(images) + 1)]
        self.log_metrics({n: self._trackio.Image(image) for n, image in zip(names, images, strict=True)}, step)

    def log_table(
        self, key: str, columns: Sequence[str], data: Sequence[Sequence[Any]], step: int | None = None
    ) -> None:
        """Log a table."""
        self.log_metrics({key: self._trackio.Table(columns=list(columns), data=[list(row) for row in data])}, step)

    def log_text(
        self, key: str, columns: Sequence[str], data: Sequence[Sequence[str]], step: int | None = None
    ) -> None:
        """Log texts, as a table of them."""
        self.log_table(key, columns, data, step)

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what has not been written. Training and evaluation are stages of one run, which goes on after each."""
        if "_run" in vars(self):
            self._run.finish()
            del self._run
