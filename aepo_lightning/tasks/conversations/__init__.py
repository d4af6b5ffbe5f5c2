"""Conversations for the cold start, as they are kept in files and on the Hub.

conversation.py  a conversation, whatever it was written as, and why a row is none
dialects.py      ShareGPT, OpenAI messages, instructions with outputs: one row as a conversation
files.py         the rows of JSONL and parquet files, and of datasets on the Hub
"""

from aepo_lightning.tasks.conversations.conversation import (
    ChatMessage,
    Conversation,
    Fault,
    UnusableRowError,
    WrittenCall,
)
from aepo_lightning.tasks.conversations.dialects import read_conversation
from aepo_lightning.tasks.conversations.files import ConversationFiles, ConversationRow

__all__ = [
    "ChatMessage",
    "Conversation",
    "ConversationFiles",
    "ConversationRow",
    "Fault",
    "UnusableRowError",
    "WrittenCall",
    "read_conversation",
]
