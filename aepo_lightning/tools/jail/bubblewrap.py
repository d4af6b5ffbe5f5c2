"""The command line that starts a worker inside bubblewrap: which namespaces, which mounts, which interpreter."""

import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aepo_lightning.errors import ConfigError
from aepo_lightning.tools.jail import inside
from aepo_lightning.tools.jail.hidden import PACKAGE_FOLDERS, cover_private_folders, library_folder, places_inside
from aepo_lightning.tools.jail.inside.config import DEVICES, JAIL_FOLDER, WORK_FOLDER

_SYSTEM_FOLDERS = ("/bin", "/sbin", "/lib", "/lib64", "/lib32")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
_MODULE = "aepo_lightning.tools.jail.inside.zygote"
# One thread: several on every core would exhaust the address space, and a zygote must have one when it forks. The hash
# seed is fixed because sets of strings would otherwise come out in another order on each worker.
ENVIRONMENT = {
    "HOME": WORK_FOLDER,
    "LANG": "C.UTF-8",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PATH": "/usr/bin:/bin",
    "PYTHONHASHSEED": "0",
    "TMPDIR": WORK_FOLDER,
}


_ASK_S = 30.0
_SITE_FOLDER = f"{JAIL_FOLDER}/site"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python and its packages, as paths that are mounted into the jail."""

    executable: str
    prefix: str
    site_paths: tuple[str, ...]

    def folders(self) -> tuple[str, ...]:
        """Return what must be mounted beside the system, without folders inside others."""
        wanted = [path for path in dict.fromkeys((self.prefix, *self.site_paths)) if not _is_inside(path, "/usr")]
        return tuple(path for path in wanted if not any(path != other and _is_inside(path, other) for other in wanted))

    def needed(self) -> tuple[str, ...]:
        """Return all that it is made of, wherever that is mounted."""
        return (self.executable, self.prefix, *self.site_paths)

    def inside(self, path: str) -> str:
        """Return where the jail has one of the folders: packages below `/tmp`, which leads to the work folder, move."""
        if not _is_inside(path, "/tmp") or _is_inside(path, self.prefix):
            return path
        return f"{_SITE_FOLDER}/{self.site_paths.index(path)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bubblewrap:
    """The installed program."""

    path: str
    version: str
    options: frozenset[str]


def find_bubblewrap() -> Bubblewrap | None:
    """Return the installed bubblewrap, or None. That it can start is another question.

    Raises:
        OSError: If what is installed is no program.
        TimeoutExpired: If it does not answer.
    """
    path = shutil.which("bwrap")
    if path is None:
        return None
    version, options = (
        subprocess.run([path, flag], capture_output=True, text=True, env={}, check=False, timeout=_ASK_S).stdout
        for flag in ("--version", "--help")
    )
    return Bubblewrap(path=path, version=version.strip(), options=frozenset(re.findall(r"--[a-z][a-z-]+", options)))


def find_interpreter(packages: Iterable[str]) -> Interpreter:
    """Describe the Python that runs this process.

    Args:
        packages: Packages or parts of them; the folders that hold their top levels must be mounted.

    Raises:
        ConfigError: If the interpreter lies where it cannot be mounted without private files, or cannot be read.
    """
    paths = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    for name in packages:
        spec = importlib.util.find_spec(name.partition(".")[0])
        paths += [str(Path(folder).parent) for folder in (spec.submodule_search_locations or ())] if spec else []
    kept = [path for path in dict.fromkeys(paths) if os.path.isdir(path) and Path(path).name in PACKAGE_FOLDERS]
    found = Interpreter(executable=_find_executable(), prefix=os.path.realpath(sys.base_prefix), site_paths=tuple(kept))
    check_interpreter(found)
    return found


def _find_executable() -> str:
    """Return the program of the interpreter, which is not that of an environment that has a copy of it."""
    base = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    return base if os.access(base, os.X_OK) else os.path.realpath(sys.executable)


def check_interpreter(interpreter: Interpreter) -> None:
    """Refuse an interpreter that cannot be mounted.

    Raises:
        ConfigError: If its prefix holds other people's files too, or if this user cannot reach one of its folders.
    """
    if Path(interpreter.prefix) in (Path("/"), Path("/home"), Path("/root"), Path.home()):
        raise ConfigError(
            f"The prefix of Python must be a folder of its own, but got {interpreter.prefix}. Use a Python that is "
            "installed elsewhere: the jail would show private files."
        )
    for path in (interpreter.executable, *interpreter.folders()):
        if not os.access(path, os.R_OK | os.X_OK):
            raise ConfigError(
                f"Python must be readable for the user who starts the jail, but got no access to {path}. Use a Python "
                "outside of another user's home."
            )


def build_command(
    bubblewrap: Bubblewrap, interpreter: Interpreter, *, is_root: bool, descriptors: tuple[int, int], work_mb: int
) -> list[str]:
    """Write the command line of one worker. It must be started with an empty environment.

    `--clearenv` would not do: bubblewrap itself would keep the environment of its caller, readable for the code inside.

    Args:
        bubblewrap: The program.
        interpreter: What to mount and to start.
        is_root: Whether the caller is root. Then the zygote changes to another user, which needs two capabilities; a
            user namespace would leave it user 0 to the kernel, without a limit on processes. Any other caller needs a
            user namespace.
        descriptors: The zygote's socket, and where bubblewrap reports the process number of the zygote.
        work_mb: Size of the work folder in MiB.

    Returns:
        Program and arguments.
    """
    control, info = descriptors
    command = [bubblewrap.path, "--die-with-parent", "--as-pid-1", "--info-fd", str(info), "--hostname", "jail"]
    command += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    command += ["--cap-drop", "ALL"]
    if is_root:
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", *({"--disable-userns"} & bubblewrap.options)]
    command += _mounts(interpreter, work_mb)
    for name, value in ENVIRONMENT.items():
        command += ["--setenv", name, value]
    start = f"import sys; sys.path.insert(0, {JAIL_FOLDER!r}); from {_MODULE} import main; main({control})"
    return [*command, "--chdir", WORK_FOLDER, "--", interpreter.executable, "-P", "-s", "-S", "-c", start]


def readable_folders(interpreter: Interpreter) -> list[str]:
    """Return what code inside may read besides its work folder."""
    return ["/usr", *_SYSTEM_FOLDERS, "/etc", "/proc", "/dev", *map(interpreter.inside, interpreter.folders())]


def library_places(interpreter: Interpreter) -> list[str]:
    """Return where the files of this library would appear inside if nothing hid them, its place outside included."""
    library = library_folder()
    return list(dict.fromkeys([library, *places_inside(library, _mounted_folders(interpreter))]))


def _mounts(interpreter: Interpreter, work_mb: int) -> list[str]:
    sources = {path: interpreter.inside(path) for path in interpreter.folders()} | _own_files()
    mounts = _parents((*sources.values(), "/usr", "/etc/x", "/dev/x", WORK_FOLDER))
    mounts += ["--ro-bind", "/usr", "/usr"]
    for folder in _SYSTEM_FOLDERS:
        if os.path.islink(folder):
            mounts += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            mounts += ["--ro-bind", folder, folder]
    for file in _SYSTEM_FILES:
        mounts += ["--ro-bind-try", file, file]
    for source, target in sources.items():
        mounts += ["--ro-bind", source, target]
    mounts += cover_private_folders(_mounted_folders(interpreter), interpreter.needed())
    for device in DEVICES:
        mounts += ["--dev-bind", device, device]
    mounts += ["--proc", "/proc", "--symlink", "/proc/self/fd", "/dev/fd"]
    if not any(_is_inside(path, "/tmp") for path in sources.values()):
        mounts += ["--symlink", WORK_FOLDER, "/tmp"]
    mounts += ["--perms", "1777", "--size", str(work_mb << 20), "--tmpfs", WORK_FOLDER]
    # Root, /dev and the folders between mounts are one volume in memory without a size: nobody may write to it.
    return [*mounts, "--remount-ro", "/"]


def _mounted_folders(interpreter: Interpreter) -> dict[str, str]:
    """Return the folders of the host that code inside can see, and where."""
    system = {folder: folder for folder in ("/usr", *_SYSTEM_FOLDERS) if not os.path.islink(folder)}
    return system | {path: interpreter.inside(path) for path in (*interpreter.folders(), *interpreter.site_paths)}


def _own_files() -> dict[str, str]:
    """Return the files of this library that the zygote needs, and where they appear."""
    folder = Path(inside.__file__).parent
    target = Path(JAIL_FOLDER, *_MODULE.split(".")[:-1])
    return {str(path): str(target / path.name) for path in sorted(folder.glob("*.py"))}


def _parents(paths: Sequence[str]) -> list[str]:
    """Make every folder above a mount readable for all; bubblewrap would make it private to its caller."""
    folders = {str(parent) for path in paths for parent in Path(path).parents if str(parent) != "/"}
    return [part for folder in sorted(folders) for part in ("--perms", "0755", "--dir", folder)]


def _is_inside(path: str, other: str) -> bool:
    return Path(path).is_relative_to(other)
