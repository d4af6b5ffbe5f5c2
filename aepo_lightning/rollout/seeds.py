"""Seeds and random numbers that derive from where they are used: run, iteration, question, branch path, turn.

Nothing here has state, so the order in which chains run cannot change what they draw.
"""

from collections.abc import Sequence
from hashlib import blake2b


def derive_seed(*path: int | str) -> int:
    """Hash a path of names and numbers to a seed in [0, 2**63)."""
    # Each part carries its kind and length, so that no two paths give the same text.
    text = "".join(f"{'s' if isinstance(part, str) else 'i'}{len(str(part))}:{part}" for part in path)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def drawing_chain(seed_path: Sequence[int | str], turn: int) -> tuple[int | str, ...]:
    """Return the chain whose numbers a turn is drawn with: what a branch shares with its trunk is the trunk's.

    Args:
        seed_path: A chain. Behind its trunk, a branch has `b`, its first own turn and its number there.
        turn: Of the chain, counted from the prompt.
    """
    path = tuple(seed_path)
    while len(path) > 3 and path[-3] == "b" and turn < int(path[-2]):
        path = path[:-3]
    return path


def decision_uniform(seed: int, question_id: str, seed_path: Sequence[int | str], turn: int) -> float:
    """Return the number in [0, 1) that belongs to a chain's branch decision.

    Args:
        seed: Of the tree.
        question_id: Of its question.
        seed_path: The chain.
        turn: Of the decision.
    """
    return derive_uniform(seed, question_id, *seed_path, turn, "decision")


def derive_uniform(*path: int | str) -> float:
    """Hash a path of names and numbers to a number in [0, 1)."""
    return (derive_seed(*path) >> 10) * 2.0**-53
