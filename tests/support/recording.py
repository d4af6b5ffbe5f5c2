"""What stands in for loggers and measurements: keeps what reaches it, or says what it is told to say."""

from lightning import Callback
from lightning.pytorch.loggers import Logger
from typing_extensions import override


def is_measured(name):
    """Whether a number depends on the machine and its load, as times and memory do."""
    return name.endswith(("_s", "idle_fraction")) or name.startswith(("time/", "throughput/", "memory/"))


class Experiment:
    """What a TensorBoard writer is to the callbacks."""

    def __init__(self):
        self.texts = []
        self.pictures = []
        self.histograms = []

    def add_text(self, tag, text, step):
        self.texts.append((tag, text, step))

    def add_image(self, tag, picture, step, dataformats):
        assert dataformats == "HWC"
        self.pictures.append((tag, picture, step))

    def add_histogram(self, tag, values, step):
        self.histograms.append((tag, values, step))


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
        """Every number but measured times and memory."""
        return [
            (step, name, value)
            for step, row in self.rows
            for name, value in sorted(row.items())
            if not is_measured(name)
        ]


class SetMetrics(Callback):
    """Replaces measured rollout metrics, one value per iteration; the last value stays."""

    def __init__(self, **series):
        self._series = {f"rollout/{name}": values for name, values in series.items()}

    @override
    def on_train_epoch_start(self, trainer, pl_module):
        for name, values in self._series.items():
            trainer.datamodule.metrics[name] = values[min(trainer.current_epoch, len(values) - 1)]
