"""Messages of a question."""

from aepo_lightning.contracts.question import Message


def with_system(system_prompt: str, user_text: str) -> tuple[Message, ...]:
    """Return the messages of a question: the system prompt unless it is empty, then the user's text."""
    user = Message(role="user", content=user_text)
    return (Message(role="system", content=system_prompt), user) if system_prompt else (user,)
