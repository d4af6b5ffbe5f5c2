"""What runs inside the workers of a vLLM server: our sampler, and an update path that reads weights from files.

vLLM imports this module in each worker before the model is loaded (`--worker-extension-cls`), and nothing else does.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from aepo_lightning.engines.adapters import merged_with_file
from aepo_lightning.engines.vllm import launch as vllm_launch
from aepo_lightning.engines.vllm.sampler import install

BACKEND = "aepo_file"
"""Name of the update path, for `--weight-transfer-config`."""

_base: Any = import_module("vllm.distributed.weight_transfer.base")
_factory: Any = import_module("vllm.distributed.weight_transfer.factory").WeightTransferEngineFactory
_reloading: Any = import_module("vllm.model_executor.model_loader.reload")


@dataclass
class FileInit(_base.WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing has to be agreed on beforehand."""


@dataclass
class FileUpdate(_base.WeightTransferUpdateInfo):  # type: ignore[misc]
    """One file of weights, and the adapter to merge into them, if any."""

    path: str
    adapter: str = ""


class FileTransfer(_base.WeightTransferEngine):  # type: ignore[misc]
    """Loads safetensors files by their Hugging Face names, layer by layer."""

    init_info_cls = FileInit
    update_info_cls = FileUpdate
    _is_open = False

    def init_transfer_engine(self, init_info: FileInit) -> None:
        """Do nothing: files need no connection."""

    def start_weight_update(self) -> None:
        """Make room for new weights; an update that broke off is closed first."""
        if self._is_open:
            self._close()
        self._is_open = True
        _reloading.initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Load one file."""
        weights = load_file(update_info.path)
        if update_info.adapter:
            self.model.load_weights(merged_with_file(weights, update_info.adapter, self.device))
        else:
            self.model.load_weights(weights.items())

    def finish_weight_update(self) -> None:
        """Put the new weights in place."""
        self._close()
        if self.device.type == "cpu":
            vllm_launch.repack_output_embedding(self.model)

    def shutdown(self) -> None:
        """Do nothing: there is no connection."""

    def _close(self) -> None:
        self._is_open = False
        _reloading.finalize_layerwise_reload(self.model, self.model_config)


class Extension:
    """Methods that vLLM adds to its worker; `/collective_rpc` calls them."""

    model_runner: Any

    def aepo_install_sampler(self) -> dict[str, str]:
        """Make the worker draw and report as `vllm.sampler` describes."""
        install(self.model_runner)
        _list_sampled_once(self.model_runner.sampler)
        return {"entropies": "exact"}

    def aepo_check_file(self, path: str) -> dict[str, str]:
        """Return what is wrong with a file of weights, as far as its presence goes; empty if nothing."""
        try:
            with Path(path).open("rb"):
                return {"problem": ""}
        except OSError as error:
            return {"problem": str(error)}


def _list_sampled_once(sampler: Any) -> None:
    """Keep the sampled token out of the list of top tokens, at the price of the last of them.

    A server builds a table with one entry per token, in which the entry from the list would replace the one that
    carries the entropy.
    """
    original = vars(sampler).get("forward")
    if original is None:  # the second model runner
        return

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        listed = output.logprobs_tensors
        if listed is not None and listed.logprob_token_ids.shape[1] > 1:
            keep = listed.logprob_token_ids != listed.logprob_token_ids[:, :1]
            keep[:, -1] &= ~keep[:, 1:].all(-1)
            keep[:, 0] = True
            shape = (keep.shape[0], keep.shape[1] - 1)
            output.logprobs_tensors = listed._replace(
                logprob_token_ids=listed.logprob_token_ids[keep].view(shape),
                logprobs=listed.logprobs[keep].view(shape),
            )
        return output

    sampler.forward = forward


if BACKEND not in _factory._registry:
    _factory.register_engine(BACKEND, FileTransfer)
