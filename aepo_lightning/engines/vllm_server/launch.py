"""Starts one vLLM server that fits `VLLMServerEngine`: `python -m aepo_lightning.engines.vllm_server.launch MODEL`.

Everything after the model goes to vLLM as it is (`--port`, `--tensor-parallel-size`, `--data-parallel-size` ...) and
replaces what is set here.
"""

import json
import os
import sys
from collections.abc import Sequence

from aepo_lightning.engines.vllm import launch as vllm_launch

_CPU_FLAGS = ("--kv-cache-memory-bytes", "1G", "--block-size", "32", "--enforce-eager")
"""Without the first, vLLM's CPU build takes nearly all memory; smaller blocks share more of a branch's prefix."""
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


def main() -> None:
    """Become the server.

    Raises:
        SystemExit: If no model is named.
        EngineError: If vLLM is not installed, or not in a version that fits.
    """
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise SystemExit(_USAGE)
    vllm_launch.check_installed()
    command = server_command(sys.argv[1], sys.argv[2:], is_cpu=vllm_launch.is_cpu_build())
    os.execve(command[0], command, server_environment())


if __name__ == "__main__":
    main()
