"""What stands in for loggers and measurements: keeps what reaches it, or says what it is told to say."""

from lightning import Callback
from lightning.pytorch.loggers import Logger
from typing_extensions import override


class Experiment:
    """What a TensorBoard writer is to the callbacks."""

    def __init__(self):
        self.texts = []
        self.figures = []

    def add_text(self, tag, text, step):
        self.texts.append((tag, text, step))

    def add_figure(self, tag, figure, step, close):
        assert not close, "pyplot does not know the figure"
        self.figures.append((tag, figure, step))


class RecordingLogger(Logger):
    """Keeps every number that reaches a logger, with its step."""

    def __init__(self):
        super().__init__()
        self.rows = []
        self.experiment = Experiment()

    name = "recording"
    version = 0

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    @property
    def names(self):
        return {name for _, row in self.rows for name in row}

    def values(self, name):
        return [row[name] for _, row in self.rows if name in row]

    def steps(self, name):
        return [step for step, row in self.rows if name in row]

    def numbers(self):
        """Every number but measured times."""
        return [
            (step, name, value)
            for step, row in self.rows
            for name, value in sorted(row.items())
            if not name.endswith("_s")
        ]


class SetMetrics(Callback):
    """Replaces measured rollout metrics, one value per iteration; the last value stays."""

    def __init__(self, **series):
        self._series = {f"rollout/{name}": values for name, values in series.items()}

    @override
    def on_train_epoch_start(self, trainer, pl_module):
        for name, values in self._series.items():
            trainer.datamodule.metrics[name] = values[min(trainer.current_epoch, len(values) - 1)]
