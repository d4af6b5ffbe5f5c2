"""System prompts that tell a language model the trajectory format, for question files that carry none."""

from aepo_lightning.contracts.question import Message

AGENT_SYSTEM_PROMPT = (
    "Answer the question step by step. You may use two tools: a search engine and a Python interpreter. "
    "Reason inside <think> and </think> before every action. To search, write <search> your query </search>. "
    "To compute, write <python> your code </python> and print what you want to see. "
    "After each call the output of the tool follows between <result> and </result>; read it before you go on, and "
    "call tools as often as you need. "
    "When you know the answer, write <answer> a short explanation, then \\boxed{the exact answer} </answer>."
)
"""The format of the paper (arXiv 2510.14545) in words of our own, with the search and python tools."""


def with_system(system_prompt: str, user_text: str) -> tuple[Message, ...]:
    """Return the messages of a question: the system prompt unless it is empty, then the user's text."""
    user = Message(role="user", content=user_text)
    return (Message(role="system", content=system_prompt), user) if system_prompt else (user,)
