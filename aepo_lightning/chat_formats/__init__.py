"""How calls and results are written: the paper's tags, or JSON calls through the model's chat template.

tags.py        the paper's tags
hermes.py      JSON calls through chat templates, several in a turn
template.py    what a tokenizer's chat template writes, tried before it is relied on
result_frames.py what it writes around tool results
calls.py       spellings of JSON calls
guard.py       makes text harmless that others wrote
instructions.py  what a prompt says of the tools that are there
json_text.py   JSON that a policy wrote
text_codec.py  text to tokens and back
"""

from aepo_lightning.chat_formats.hermes import HermesFormat, function_schema
from aepo_lightning.chat_formats.tags import TagFormat
from aepo_lightning.chat_formats.template import message_end_id

__all__ = ["HermesFormat", "TagFormat", "function_schema", "message_end_id"]
