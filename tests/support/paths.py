"""Where things lie, whatever the depth of the test that asks."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
DATA_DIR = Path(os.environ.get("AEPO_DATA_DIR", ROOT / "../shared/data"))
SUPPORT = Path(__file__).resolve().parent
