"""Starts one vLLM server that fits `VLLMServerEngine`: `python -m aepo_lightning.engines.vllm_server.launch MODEL`.

Everything after the model goes to vLLM as it is (`--port`, `--tensor-parallel-size`, `--data-parallel-size` ...) and
replaces what is set here.
"""

import argparse
import json
import os
import socket
import sys
from collections.abc import Sequence

from aepo_lightning.engines.vllm import launch as vllm_launch
from aepo_lightning.errors import ConfigError

_CPU_FLAGS = ("--kv-cache-memory-bytes", "1G", "--block-size", "32", "--enforce-eager")
"""Without the first, vLLM's CPU build takes nearly all memory; smaller blocks share more of a branch's prefix."""
_DEFAULT_PORT = 8000
_USAGE = "usage: python -m aepo_lightning.engines.vllm_server.launch MODEL [vLLM's own arguments]"


def server_command(model: str, arguments: Sequence[str] = (), *, is_cpu: bool = False) -> list[str]:
    """Return the command of a server whose workers draw with our sampler and take published weights.

    Args:
        model: A folder or a name on the Hugging Face hub; also the source of the tokenizer.
        arguments: vLLM's own, which win over those set here.
        is_cpu: Whether the installed vLLM computes on the CPU.
    """
    # Not the `vllm` command: that of the CPU build does not start without the metadata of the GPU build.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--enable-scale-out", "--enable-prompt-tokens-details"]
    command += ["--generation-config", "vllm", "--max-logprobs", "-1"]
    command += ["--worker-extension-cls", "aepo_lightning.engines.vllm_server.extension.Extension"]
    # The name of `extension.BACKEND`, which cannot be imported without vLLM.
    command += ["--weight-transfer-config", json.dumps({"backend": "aepo_file"})]
    return [*command, *(_CPU_FLAGS if is_cpu else ()), *arguments]


def server_environment() -> dict[str, str]:
    """Return the environment of such a server: this process's own and what vLLM has to be told."""
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        **os.environ,
        "VLLM_SERVER_DEV_MODE": "1",  # the routes of weight updates
    }


def check_address(arguments: Sequence[str]) -> None:
    """See that nothing listens yet where vLLM is told to, before it loads anything.

    Args:
        arguments: vLLM's own.

    Raises:
        ConfigError: If the address is taken or is not one of this machine.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--host", default="")
    parser.add_argument("--port", type=int, default=_DEFAULT_PORT)
    given, others = parser.parse_known_args(list(arguments))
    if any(word.startswith("--uds") for word in others):  # a socket in the file system
        return
    family = socket.AF_INET6 if ":" in given.host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((given.host, given.port))
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"`--host` and `--port` must be a free address of this machine, but got {given.host or 'any'} and "
            f"{given.port}: {error}. Choose another `--port`, or end the server that has it."
        ) from error


def main() -> None:
    """Become the server.

    Raises:
        SystemExit: If no model is named, or its address is taken.
        EngineError: If vLLM is not installed, or not in a version that fits.
    """
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise SystemExit(_USAGE)
    vllm_launch.check_installed()
    try:
        check_address(sys.argv[2:])
    except ConfigError as error:
        raise SystemExit(str(error)) from error
    command = server_command(sys.argv[1], sys.argv[2:], is_cpu=vllm_launch.is_cpu_build())
    os.execve(command[0], command, server_environment())


if __name__ == "__main__":
    main()
