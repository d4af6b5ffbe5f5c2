"""The command `aepo-sft`: good trajectories of a run, or of an evaluation, as data for the cold start.

    aepo-sft RUN_OR_EVALUATION target=good.jsonl [min_reward=1] [per_question=1] [prefer=reward|shortest|first]
             [min_tool_calls=0] [is_well_formed=true] [overwrite=true]

Trajectories come from the journal in the folder. A line of the target is one of them, as OpenAI messages with question,
accepted answers and reward beside them; `coldstart=sft coldstart.data.path=good.jsonl` trains on it, and reads the very
tokens that were sampled.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from aepo_lightning.app.build import build_chat_format, build_tools, find_modules_here
from aepo_lightning.app.command import guarded_command, quieten_libraries, speak_utf8
from aepo_lightning.app.evaluation.saved_tools import TOOLS, RecordedTools
from aepo_lightning.app.paths import as_path, writing
from aepo_lightning.app.run_folder import CONFIG
from aepo_lightning.app.saved_trees import judged, opened_folder, verdicts_of
from aepo_lightning.app.targets import add_allow
from aepo_lightning.atomic_files import replacing
from aepo_lightning.chat_formats import message_end_id
from aepo_lightning.contracts.tool import ToolSpec
from aepo_lightning.errors import ConfigError
from aepo_lightning.rollout import RolloutJournal
from aepo_lightning.training.sft import GoodTrajectories, Selection

_BUILT = ("model", "tools", "rollout.chat_format")
_OWN = ("target", "overwrite")


def good_trajectories(source: Path, selection: Selection, allowed: Sequence[str] = ()) -> GoodTrajectories:
    """Return the good trajectories in the journal of a folder.

    Args:
        source: Of a run or an evaluation.
        selection: Which ones are good.
        allowed: What the configuration in the folder may call beside the parts of this library.

    Raises:
        ConfigError: If the folder is neither, or has no journal, or its configuration would call what is not allowed.
        DataError: If a file is damaged.
    """
    cfg, policy = opened_folder(source, allowed, _BUILT)
    # Of a run, the questions that it was trained on; evaluations inside it ask what was held out.
    folders = [source / "rollouts"] if (source / CONFIG).is_file() else sorted(source.rglob("rollouts"))
    files = [path for folder in folders for path in sorted(folder.glob("*.jsonl"))]
    files = [path for path in files if not path.stem.endswith(".steps")]
    if not files:
        raise ConfigError(f"The folder must hold finished rollouts, but {source} has none. Name that of a run.")
    specs = _specs(source, cfg)
    found = GoodTrajectories(
        selection=selection,
        chat_format=build_chat_format(cfg, policy.tokenizer, specs),
        specs=specs,
        end_token_id=message_end_id(policy.tokenizer),
    )
    verdicts = verdicts_of(source)
    for path in files:
        trees = RolloutJournal(path.parent).read(path.stem)
        found.add(str(path.relative_to(source)), (judged(tree, verdicts) for tree in trees))
    return found


def _specs(source: Path, cfg: DictConfig) -> Sequence[ToolSpec]:
    """Return what the tools said of themselves. An evaluation has kept it, so that they need not be here."""
    is_kept = (source / TOOLS).is_file() and not (source / CONFIG).is_file()
    return RecordedTools.load(source).specs if is_kept else build_tools(cfg.tools).specs


def read_words(words: Sequence[str]) -> tuple[Path, bool, Selection]:
    """Return where the rows go, whether a file there may be replaced, and which ones they are.

    Args:
        words: `key=value` each.

    Raises:
        ConfigError: If a key is unknown, a value has no meaning, or `target` is missing.
    """
    known = (*_OWN, *(field.name for field in fields(Selection)))
    values: dict[str, Any] = {}
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"There are {', '.join(known)}."
            raise ConfigError(f"Options must be written key=value, but got {word!r}. {hint}")
        values[key] = _value(key, text)
    target, overwrite = values.pop("target", ""), values.pop("overwrite", False)
    return as_path(target, "target"), overwrite, Selection(**values)


def _value(key: str, text: str) -> Any:
    read, kind = _READERS.get(key, (str, "a text"))
    try:
        return read(text)
    except (KeyError, ValueError):
        raise ConfigError(f"`{key}` must be {kind}, but got {text!r}. Correct it.") from None


def _flag(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


_READERS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "min_reward": (float, "a number"),
    "per_question": (int, "a whole number"),
    "min_tool_calls": (int, "a whole number"),
    "is_well_formed": (_flag, "true or false"),
    "overwrite": (_flag, "true or false"),
}


def write_rows(rows: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Write rows as a JSONL file, whole or not at all.

    Raises:
        ConfigError: If it cannot be written.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial:
            partial.write_text(text, encoding="utf-8")


def export_good(source: Path, words: Sequence[str], allowed: Sequence[str] = ()) -> str:
    """Write the good trajectories of a folder and return what was found, in words.

    Args:
        source: Of a run or an evaluation.
        words: `key=value` each, as `read_words` takes them.
        allowed: What the configuration in the folder may call beside the parts of this library.

    Raises:
        ConfigError: If a setting does not fit, nothing is good, or the target is there or cannot be written.
        DataError: If a file is damaged.
    """
    target, overwrite, selection = read_words(words)
    if target.exists() and not overwrite:
        raise ConfigError(f"`target` must be a new file, but {target} is there. Name another, or add overwrite=true.")
    found = good_trajectories(source, selection, allowed)
    rows = found.rows()
    if not rows:
        raise ConfigError(f"There must be a good trajectory, but of {found.summary()}\nLower `min_reward`.")
    write_rows(rows, target)
    return f"{found.summary()}\n{len(rows)} rows are in {target}."


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of a run or an evaluation")
    parser.add_argument("words", nargs="*", metavar="key=value", help="target=FILE and what else is wanted")
    add_allow(parser)
    speak_utf8()
    args = parser.parse_args()
    find_modules_here()
    quieten_libraries()
    with guarded_command("Nothing was written."):
        said = export_good(args.source, args.words, args.allow)
        Console().print(said, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
