"""Where a policy comes from: built from a configuration, or loaded from a Hugging Face folder.

Both parts satisfy `contracts.policy.PolicySource`. What turns a model into log-probs and entropies is `PolicyNetwork`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME

from aepo_lightning.contracts.policy import StoredWeights
from aepo_lightning.errors import AepoError, ConfigError, DataError, boundary
from aepo_lightning.policy.hub import why_offline
from aepo_lightning.policy.stored_tokenizer import load_tokenizer

_HUB_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")


@dataclass(kw_only=True)
class ScratchPolicy:
    """A randomly initialised policy with a tokenizer of its own: nothing is downloaded."""

    tokenizer: PreTrainedTokenizerBase
    architecture: Mapping[str, Any]
    """Fields of the Hugging Face configuration, `model_type` among them; `vocab_size` follows the tokenizer."""
    seed: int = 0
    """Seed of the initial weights."""

    def __post_init__(self) -> None:
        """Refuse an architecture without a name, or with what follows from the tokenizer."""
        if "model_type" not in self.architecture:
            raise ConfigError(
                f"`architecture` must have a `model_type`, but got {sorted(self.architecture)}. Add one, such as qwen3."
            )
        own = {"vocab_size", "pad_token_id", "eos_token_id", "use_cache"} & set(self.architecture)
        if own:
            raise ConfigError(f"`architecture` must leave {sorted(own)} to the tokenizer. Remove what is named here.")

    @cached_property
    def config(self) -> PretrainedConfig:
        """The configuration of the architecture."""
        fields = dict(self.architecture)
        model_type = fields.pop("model_type")
        tokenizer = self.tokenizer
        config: PretrainedConfig = AutoConfig.for_model(
            model_type,
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            use_cache=False,
            **fields,
        )
        return config

    def build_model(self) -> PreTrainedModel:
        """Return a new fp32 model; every call gives the same weights and leaves the global RNG untouched."""
        with torch.random.fork_rng(devices=[]):
            # `torch.manual_seed` would seed the generators of all GPUs too, which nothing here puts back.
            torch.default_generator.manual_seed(self.seed)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                deepcopy(self.config),  # the model changes it: how it attends, whether it keeps a cache
                dtype=torch.float32,
            )
        return model

    def find_weights(self) -> StoredWeights | None:
        """Return None: weights are drawn when the model is built, whole on every rank."""
        return None


@dataclass
class PretrainedPolicy:
    """A policy from a Hugging Face folder or hub name.

    Raises:
        ConfigError: If there is no such folder and it is no hub name, or nothing can be downloaded under that name.
        DataError: If the folder lacks a part of a model, or a part cannot be read.
    """

    name_or_path: str
    """A local folder, or a name on the Hub."""
    _: KW_ONLY
    architecture: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the configuration, for planning without the folder."""
    dtype: str = "float32"
    """Precision of the weights that the optimiser updates; engines and FSDP choose theirs for computing."""
    eos_tokens: Sequence[str] = ()
    """Tokens that end a message beside those which the tokenizer and `generation_config.json` name, by their text."""
    hint: str = ""
    """How to get the folder, said where it is missing."""
    trust_remote_code: bool = False
    """Run the code that a model brings along. False refuses such a model; nobody is asked."""

    def __post_init__(self) -> None:
        """Refuse a precision that torch does not know, and a mistyped folder."""
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ConfigError(f"`dtype` must name a torch dtype, but got {self.dtype!r}. Use float32 or bfloat16.")
        if self.name_or_path.startswith("~"):
            self.name_or_path = str(Path(self.name_or_path).expanduser())
        if not self._is_folder and not _HUB_NAME.fullmatch(self.name_or_path):
            raise ConfigError(
                f"`name_or_path` must be a folder or a model's name on the Hub, but got {self.name_or_path!r} and "
                f"there is no such folder. {self.hint or 'Correct the path.'}"
            )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer beside the weights; its padding token defaults to the end-of-sequence token."""
        with self._reading("a tokenizer", *_TOKENIZER_FILES):
            tokenizer = load_tokenizer(self._place, trust_remote_code=self.trust_remote_code)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def config(self) -> PretrainedConfig:
        """The configuration beside the weights."""
        with self._reading("a configuration", "config.json"):
            config: PretrainedConfig = AutoConfig.from_pretrained(
                self._place, use_cache=False, trust_remote_code=self.trust_remote_code
            )
        return config

    @cached_property
    def generation_config(self) -> GenerationConfig:
        """What its makers say of generation, and `eos_tokens`; without a file, what the configuration says."""
        found = self._stored_generation_config() or GenerationConfig.from_model_config(self.config)
        if self.eos_tokens:
            named = found.eos_token_id
            ids = [*(named if isinstance(named, list) else [] if named is None else [named])]
            found.eos_token_id = [*dict.fromkeys([*ids, *map(self._token_id, self.eos_tokens)])]
        return found

    def _stored_generation_config(self) -> GenerationConfig | None:
        if self._is_folder and not (Path(self.name_or_path) / GENERATION_CONFIG_NAME).is_file():
            return None
        failures: list[Exception] = []
        with boundary(failures.append):
            return GenerationConfig.from_pretrained(self._place)
        error = failures[0]
        if isinstance(error, OSError) and not self._is_folder:
            return None  # there is none beside the weights
        raise DataError(f"{self.name_or_path}/{GENERATION_CONFIG_NAME} must be JSON, but: {_reason(error)}") from error

    def _token_id(self, text: str) -> int:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise ConfigError(
                f"`eos_tokens` must be tokens of {self.name_or_path}, but got {text!r}, which is {len(ids)} tokens. "
                "Spell it as the tokenizer does."
            )
        return int(ids[0])

    def build_model(self) -> PreTrainedModel:
        """Load the model."""
        with self._reading("a configuration", "config.json"):
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                self._place, dtype=getattr(torch, self.dtype), trust_remote_code=self.trust_remote_code
            )
        model.config.use_cache = False
        return model

    def find_weights(self) -> StoredWeights | None:
        """Return the folder of the weights; one of a hub name is downloaded first."""
        if self._is_folder:
            folder = Path(self.name_or_path)
        else:
            with self._reading("weights"):
                place = self._place
                is_here = bool(self._why_offline)
                files = ["*.safetensors", "*.json"]
                folder = Path(place if is_here else snapshot_download(place, allow_patterns=files))
        return StoredWeights(folder=folder, dtype=getattr(torch, self.dtype))

    @property
    def _is_folder(self) -> bool:
        return self.name_or_path != "" and Path(self.name_or_path).is_dir()

    @cached_property
    def _why_offline(self) -> str:
        """Why nothing is downloaded, found out once; empty where the Hub answers."""
        return why_offline(self.name_or_path)

    @cached_property
    def _place(self) -> str:
        """The folder, or the name on the Hub; where nothing can be downloaded, the folder of what was before.

        Raises:
            OSError: If nothing was.
        """
        if self._is_folder or not self._why_offline:
            return self.name_or_path
        return snapshot_download(self.name_or_path, local_files_only=True)

    def _refuse_code(self, error: Exception) -> None:
        """Say what to set where a model wants its own code to be run."""
        if not self.trust_remote_code and "trust_remote_code" in str(error):
            raise ConfigError(
                f"`trust_remote_code` must be true for {self.name_or_path}, which has classes of its own, but got "
                "False. Read its *.py files; if you want them to run here, set `model.trust_remote_code=true`."
            ) from error

    @contextmanager
    def _reading(self, part: str, *patterns: str) -> Iterator[None]:
        """Explain what goes wrong while a part of the model is read or downloaded.

        Args:
            part: What is read, in words.
            patterns: Names of files, one of which a folder must have.
        """
        name = self.name_or_path
        if self._is_folder and patterns and not any(any(Path(name).glob(pattern)) for pattern in patterns):
            raise DataError(
                f"{name} must hold {part}, but has no file {' or '.join(patterns)}. Name the folder of a whole model, "
                "as `save_pretrained` writes it."
            )
        failures: list[Exception] = []
        with boundary(failures.append):  # what lies in a folder may be anything, code of its makers too
            yield
        for error in failures:
            if isinstance(error, AepoError | MemoryError | torch.OutOfMemoryError):
                raise error
            self._refuse_code(error)
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> Exception:
        name, reason = self.name_or_path, _reason(error)
        if self._is_folder:
            return DataError(f"{name} must be a model that can be read, but is not: {reason} Repair it.")
        here = Path(name)
        hint = f" There is a folder {here.parent} here, but no {here.name} in it." if here.parent.is_dir() else ""
        hint = " It is a file: name the folder that it lies in." if here.is_file() else hint if "/" in name else ""
        if self._why_offline:
            reason = f"{self._why_offline}, and it was not downloaded whole before."
        return ConfigError(
            f"`name_or_path` must be a folder or a model that can be downloaded, but got {name!r}: {reason}{hint} "
            f"Correct it. Without a network, `hf download {name} --local-dir FOLDER` elsewhere and name FOLDER."
        )


def _reason(error: Exception) -> str:
    """Return the first line of an error, with the next one if it only leads to that, and the name of an odd one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    text = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    return text if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {text}"
