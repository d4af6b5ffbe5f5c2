"""How calls and results are written: the paper's tags, or JSON calls through the model's chat template.

tags.py        the paper's tags
hermes.py      JSON calls through chat templates, several in a turn
instructions.py  what a prompt says of the tools that are there
json_text.py   JSON that a policy wrote
text_codec.py  text to tokens and back, made harmless
"""

from aepo_lightning.chat_formats.hermes import HermesFormat, function_schema
from aepo_lightning.chat_formats.tags import TagFormat

__all__ = ["HermesFormat", "TagFormat", "function_schema"]
