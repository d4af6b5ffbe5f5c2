"""The command line of `train.py`: check the overrides, compose the configuration, turn errors into one message."""

import locale
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.resources import files
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory

import hydra
import yaml
from hydra import compose, initialize_config_module
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers.utils import logging as transformers_logging

from aepo_lightning.app.build import find_modules_here
from aepo_lightning.app.config_dir import explain_file, folder_problem, search_path
from aepo_lightning.app.overrides import config_keys, explain_missing, explain_override_error, single_jobs
from aepo_lightning.app.paths import expand_paths
from aepo_lightning.app.sweep import Sweep
from aepo_lightning.app.user_parts import naming_callbacks
from aepo_lightning.app.words import plain_words
from aepo_lightning.distributed.first_process import is_first_process
from aepo_lightning.distributed.ranks import guarded_process
from aepo_lightning.errors import AepoError

CONFIG_MODULE = "aepo_lightning.conf"
CONFIG_NAME = "train"
_UTF8_MODE = "PYTHONUTF8"

_LOGGERS = ("aepo_lightning", "lightning.pytorch", "lightning.fabric")
_KNOWN_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6.6 with torch 2.13
    r"Your `IterableDataset` has `__len__` defined",  # one process reads it
    r".*does not have many workers",  # rollouts come from this process
    r"You defined a `validation_step` but have no `val_dataloader`",  # a cold start with nothing held out
    r"Checkpoint directory .* exists and is not empty",  # a resumed run goes on in its own folder
)


def explain_bad_overrides(words: Sequence[str]) -> str | None:
    """Compose the configuration on trial; return what is wrong with the overrides, or None.

    Args:
        words: Of the command line, with Hydra's flags. Every value of a sweep is tried; where a flag only shows
            something, values may be missing.
    """
    flags, others = get_args_parser().parse_known_args(words)
    if flags.config_path or flags.experimental_rerun:
        return None  # another configuration altogether
    overrides = [*flags.overrides, *(word for word in others if not word.startswith("-"))]
    shows_only = flags.help or flags.hydra_help or flags.cfg or flags.info or flags.shell_completion
    name = flags.config_name or CONFIG_NAME
    if problem := folder_problem(flags.config_dir):
        return problem
    extra = search_path(flags.config_dir)
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        try:
            loader = GlobalHydra.instance().config_loader()
            for job in single_jobs(overrides, loader) if flags.multirun else [overrides]:
                cfg = compose(name, [*job, *extra])
                OmegaConf.to_container(cfg, resolve=True)
                if not shows_only and (problem := explain_missing(OmegaConf.missing_keys(cfg))):
                    return problem
        except (HydraException, OmegaConfBaseException) as error:
            return explain_override_error(error, known_keys(name, overrides, extra))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            return explain_file(error, flags.config_dir)
        finally:
            GlobalHydra.instance().clear()
    return None


def known_keys(name: str, overrides: Sequence[str], extra: Sequence[str]) -> tuple[str, ...]:
    """Return the keys of a configuration with the groups that overrides choose, as far as it can be composed.

    Args:
        name: Of the configuration.
        overrides: As they were given.
        extra: Overrides that say where else to search.
    """
    groups = [word for word in overrides if "." not in (key := word.partition("=")[0]) or "@" in key]
    for words in ([*groups, *extra], list(extra)):
        with suppress(HydraException, OmegaConfBaseException):
            return config_keys(OmegaConf.to_container(compose(name, words)))  # type: ignore[arg-type]
    return ()


def config_groups() -> str:
    """Return the groups of the configuration with their options, one group a line."""
    lines = []
    for group in sorted(files(CONFIG_MODULE).iterdir(), key=lambda each: each.name):
        if not group.is_dir() or group.name.startswith("_"):
            continue
        names = sorted(each.name for each in group.iterdir())
        options = [name.removesuffix(".yaml") for name in names if name.endswith(".yaml") and name[0] != "_"]
        lines.append(f"  {group.name:<12}{' '.join(options)}")
    return "\n".join(lines)


def quieten_libraries() -> None:
    """Keep other libraries' banners and known warnings out of the output; everything else still shows.

    Of several processes, the first alone says what is no warning: the others would say it again.
    """
    for name in ("httpx", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("stamina").setLevel(logging.ERROR)  # who makes attempts says what came of them
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in () if is_first_process() else _LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def speak_utf8() -> None:
    """Read and write text and names of files as UTF-8, whatever the locale says.

    Python decides that when it starts, so under another encoding it starts again. What a terminal lacks is printed as
    escapes.
    """
    encodings = {locale.getpreferredencoding(False), sys.getfilesystemencoding()}
    if {each.lower().replace("-", "") for each in encodings} != {"utf8"} and os.environ.get(_UTF8_MODE) != "1":
        os.environ[_UTF8_MODE] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def guarded_command(what_stays: str) -> Iterator[None]:
    """Run a command of a few steps: a mistake of the user is one message, and a signal ends it with what it started.

    Args:
        what_stays: What is said after a signal, a sentence.
    """
    try:
        with guarded_process(notice=f"the command ends (exit status {{status}}). {what_stays}"):
            yield
    except AepoError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def command(run: Callable[[DictConfig], None]) -> Callable[[], None]:
    """Make a command line of what runs a composed configuration: `python train.py key=value group=option ...`.

    A mistake of the user, or a disk that fails, ends in one message and exit status 1. `--multirun` runs each job in a
    process and a folder of its own and prints a table at the end.
    """
    sweeps: list[Sweep] = []

    @hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name=CONFIG_NAME)
    def compose_and_run(cfg: DictConfig) -> None:
        try:
            expand_paths(cfg)
            if sweeps and not cfg.plan:
                sweeps[0].run(cfg)
                return
            with guarded_process(), naming_callbacks():
                run(cfg)
        except AepoError as error:
            logging.getLogger(__name__).debug("raised by", exc_info=error)
            sys.exit(f"{type(error).__name__}: {error}")

    def main() -> None:
        speak_utf8()
        find_modules_here()
        quieten_libraries()
        OmegaConf.register_new_resolver("config_groups", config_groups, replace=True)  # for the text of --help
        sys.argv[1:] = plain_words(sys.argv[1:])
        if problem := explain_bad_overrides(sys.argv[1:]):
            sys.exit(f"{problem}")
        if not Sweep.is_asked_for(sys.argv[1:]):
            compose_and_run()
            return
        sweeps.append(Sweep(sys.argv[1:]))
        # Hydra writes a file of its own about a sweep, which says nothing that the folders of the runs do not.
        with TemporaryDirectory() as folder:
            sys.argv[1:] = sweeps[0].words_with_folder(Path(folder))
            try:
                compose_and_run()
            finally:
                sweeps[0].show()
        sys.exit(sweeps[0].is_failed)

    return main
