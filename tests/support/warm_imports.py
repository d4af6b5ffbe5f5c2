"""What the server of forked commands imports before the first one, without collecting garbage meanwhile or in it later.

Collections in a command would also copy the pages of everything that it shares with the others.
"""

import gc

gc.disable()

import transformers.models.qwen3  # noqa: E402, F401

import aepo_lightning.app.replay  # noqa: E402
import aepo_lightning.tools  # noqa: E402, F401

gc.freeze()
gc.enable()
