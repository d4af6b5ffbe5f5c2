"""The first process inside the jail: imports packages once, then forks a child for each call."""

import _sitebuiltins
import builtins
import ctypes
import gc
import importlib
import json
import os
import platform
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aepo_lightning.tools.jail.inside import landlock, seccomp
from aepo_lightning.tools.jail.inside.call import kill_everything, num_files_used, run_call
from aepo_lightning.tools.jail.inside.config import DEVICES, JAIL_FOLDER, WORK_FOLDER, ZygoteConfig
from aepo_lightning.tools.jail.inside.framing import NUM_LENGTH_BYTES, pack_start, read_lengths
from aepo_lightning.tools.jail.inside.lockdown import Lockdown, become_user, give_up_privileges
from aepo_lightning.tools.jail.inside.scratch import Scratch
from aepo_lightning.tools.jail.inside.warm_up import warm_up
from aepo_lightning.tools.jail.inside.wipe import wipe

_OWN_PACKAGE = "aepo_lightning"
_COLLECT_AFTER = (20_000, 20, 20)  # children are short-lived and bounded in memory, so they collect seldom


def main(descriptor: int) -> None:
    """Serve calls from a socket until its other end is closed, or the process that started this one has ended.

    Args:
        descriptor: The inherited socket.
    """
    zygote = _Zygote(socket.socket(fileno=descriptor))
    try:
        zygote.prepare()
        zygote.serve()
    except _RefusalError as refusal:
        zygote.send({"refused": str(refusal)})


class _RefusalError(Exception):
    """This process cannot be trusted to hold code."""


class _Zygote:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._owner: int | None = None

    def prepare(self) -> None:
        """Become the process that all calls are forked from, and say what it is."""
        frame = self._receive()
        if frame is None:
            sys.exit(0)
        config = ZygoteConfig(**frame[0])
        self._owner = config.owner
        check_namespace(config.host_pid_namespace)
        with suppress(OSError):  # if memory runs out, the kernel ends code before it ends a trainer
            _write_text("/proc/self/oom_score_adj", "500")
        if config.uid is not None:
            become_user(config.uid)
        give_up_privileges()
        preloaded = _preload(config)
        check_single_thread()
        self._config, self._lockdown = config, _prepare_lockdown(config)
        self._num_files_when_empty = num_files_used()
        _share_memory()
        facts = {"ready": True, "uid": os.getuid(), "preloaded": preloaded, "landlock": landlock.landlock_version()}
        self.send(facts)

    def serve(self) -> None:
        """Run calls one after another."""
        while self._serve_once():
            pass

    def _serve_once(self) -> bool:
        frame = self._receive()
        if frame is None:
            return False
        header, request = frame
        if "cancel" in header:  # it came when the call was over
            request.close()
            return True
        answer = run_call(float(header["timeout_s"]), request, self._config, self._lockdown, self._control)
        if answer is None:
            return False
        is_clean = wipe(WORK_FOLDER) and num_files_used() <= self._num_files_when_empty
        self.send({**answer[0], "is_clean": is_clean}, answer[1])
        return True

    def send(self, header: dict[str, Any], outputs: Sequence[Scratch] = ()) -> None:
        header = {**header, "num_stdout": len(outputs[0])} if outputs else header
        with suppress(BrokenPipeError):
            self._control.sendall(pack_start(header, sum(map(len, outputs))))
            for output in outputs:
                self._control.sendall(output.view)
        for output in outputs:
            output.close()

    def _receive(self) -> tuple[dict[str, Any], Scratch] | None:
        lengths = self._receive_all(NUM_LENGTH_BYTES)
        if lengths is None:
            return None
        num_header, num_body = read_lengths(bytes(lengths.view))
        header, body = self._receive_all(num_header), self._receive_all(num_body)
        if header is None or body is None:
            return None
        return json.loads(bytes(header.view)), body

    def _receive_all(self, num_bytes: int) -> Scratch | None:
        scratch = Scratch(num_bytes)
        if scratch.receive_all(self._control, self._owner):
            return scratch
        kill_everything()
        return None


def check_namespace(host_pid_namespace: str) -> None:
    """Refuse to share process numbers with the host: the clean-up kills all processes it can see.

    Args:
        host_pid_namespace: As `/proc/self/ns/pid` names it outside.
    """
    if os.getpid() != 1 or os.readlink("/proc/self/ns/pid") == host_pid_namespace:
        raise _RefusalError("it has no PID namespace of its own, so its clean-up would kill processes of the host")


def check_single_thread() -> None:
    """Refuse to fork from several threads: a lock held by another thread would stay locked in every child."""
    num_threads = len(os.listdir("/proc/self/task"))
    if num_threads != 1:
        raise _RefusalError(f"the preloaded packages started threads ({num_threads} run); leave out the one that did")


def _share_memory() -> None:
    """Arrange memory so that children touch as few of the shared pages as they can: each page touched is copied."""
    for name in [name for name in sys.modules if name.split(".")[0] == _OWN_PACKAGE]:
        del sys.modules[name]  # here and not in each child: looking through all modules touches hundreds of pages
    sys.modules[_OWN_PACKAGE] = None  # type: ignore[assignment]  # nobody imports it, wherever a copy of it lies
    gc.set_threshold(*_COLLECT_AFTER)
    gc.collect()
    gc.freeze()  # collections in children then leave these objects alone


def _preload(config: ZygoteConfig) -> list[str]:
    for name in ("exit", "quit"):  # an interpreter that loads `site` has them, so code is written with them
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D"))
    sys.path[:] = [path for path in sys.path if path != JAIL_FOLDER] + config.site_paths
    preloaded = []
    for name in config.preload:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name == name:
                continue
            raise
        preloaded.append(name)
    warm_up(preloaded)
    return preloaded


def _prepare_lockdown(config: ZygoteConfig) -> Lockdown:
    if platform.machine() not in seccomp.machines():
        raise _RefusalError(f"there is no system-call filter for {platform.machine()} processors")
    ctypes.CDLL(None)
    rules = None
    if landlock.landlock_version():
        rules = landlock.make_ruleset(readable=config.readable, writable=[WORK_FOLDER], devices=DEVICES)
    packed = seccomp.pack_filter(seccomp.build_filter(platform.machine()))
    return Lockdown(
        memory_mb=config.memory_mb, max_file_mb=config.max_file_mb, seccomp_filter=packed, landlock_rules=rules
    )


def _write_text(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
