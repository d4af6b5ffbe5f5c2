"""Old and new side by side: as lines and tables of a terminal, or as plain values."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from aepo_lightning.app.first_difference import chain_name
from aepo_lightning.app.node import what_it_is
from aepo_lightning.app.regrow.regrown import Difference, GrownChain, Regrown
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tree import Leaf, Segment

_AROUND = 12
"""Tokens that are shown before the node, and before a difference."""


def told(regrown: Regrown) -> Iterator[Text | Table]:
    """Yield what a terminal shows."""
    node, wish = regrown.node, regrown.wish
    yield _line("node", f"{node}, in {node.rollout}: {regrown.start.what}")
    yield _line("weights", _weights(regrown))
    seeds = "the saved ones" if wish.seed is None else f"those of {wish.seed}, in place of {node.tree.seed}"
    yield _line("seeds", seeds + ("; further continuations have their own" if wish.samples > 1 else ""))
    if regrown.start.first_shown:
        kept = [token for each in node.path[: regrown.start.first_shown] for token in each.token_ids]
        yield _line("before", "... " + _shown(_text(regrown, kept[-_AROUND:])))
    for note in regrown.notes:
        yield _line("note", note)
    for number, chain in enumerate(regrown.chains):
        yield Text("")
        yield _side_by_side(regrown, chain, number)
        yield _line("tools", _tools(chain))
        yield _line("result", _result(regrown, chain))


def plain(regrown: Regrown) -> dict[str, Any]:
    """Return the same as values that JSON can hold."""
    node, wish, leaf = regrown.node, regrown.wish, regrown.node.leaf
    return {
        "node": str(node),
        "rollout": node.rollout,
        "iteration": node.iteration,
        "what": regrown.start.what,
        "edit": wish.edit,
        "seed": node.tree.seed if wish.seed is None else wish.seed,
        "weights": {
            "place": regrown.weights.place,
            "steps": regrown.weights.version,
            "steps_of_the_tree": node.tree.weights_version,
        },
        "notes": list(regrown.notes),
        "saved": _plain_chain(regrown, leaf, node.path),
        "regrown": [
            {
                **_plain_chain(regrown, chain.leaf, chain.path),
                "is_same": chain.difference is None,
                "first_difference": _plain_difference(regrown, chain.difference),
                "num_compared_tokens": chain.num_compared,
                "largest_logprob_gap": chain.logprob_gap,
                "calls": {
                    "from_the_journal": chain.tools.num_recorded,
                    "made": chain.tools.num_made,
                    "refused": chain.tools.num_refused,
                },
            }
            for chain in regrown.chains
        ],
    }


def _line(label: str, text: str) -> Text:
    return Text(f"{label:<10}{text}")


def _text(regrown: Regrown, token_ids: Sequence[int]) -> str:
    return "".join(regrown.texts.pieces(token_ids))


def _shown(text: str) -> str:
    """Return a text of which a terminal obeys nothing: models and tools have written it."""
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


def _weights(regrown: Regrown) -> str:
    used, wanted = regrown.weights, regrown.node.tree.weights_version
    if used.version is None:
        return f"{used.place}, which does not say its optimiser steps; the tree grew after {wanted}"
    if used.version == wanted:
        return f"{used.place}, after {wanted} optimiser steps: those that grew the tree"
    number, other = abs(used.version - wanted), "more" if used.version > wanted else "fewer"
    why = "were not kept" if regrown.wish.checkpoint is None else "are not asked for"
    return (
        f"{used.place}, after {used.version} optimiser steps: {number} {other} than those that grew the tree, which "
        f"{why}"
    )


def _side_by_side(regrown: Regrown, chain: GrownChain, number: int) -> Table:
    first, leaf = regrown.start.first_shown, regrown.node.leaf
    title = f"continuation {number + 1} of {len(regrown.chains)}" if len(regrown.chains) > 1 else None
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_lines=True)
    table.add_column("")
    for heading in (f"saved {chain_name(leaf)}", "regrown"):
        table.add_column(heading, ratio=1, overflow="fold")
    for old, new in zip_longest(regrown.node.path[first:], chain.path[first:]):
        labels = dict.fromkeys(what_it_is(each) for each in (old, new) if each is not None)
        table.add_row(*map(Text, (_shown(" / ".join(labels)), _cell(regrown, old), _cell(regrown, new))))
    table.add_row("ended by", leaf.stop_reason.value, chain.leaf.stop_reason.value)
    table.add_row("reward", *(Text(_shown(_reward(each))) for each in (leaf, chain.leaf)))
    return table


def _cell(regrown: Regrown, segment: Segment | None) -> str:
    return "" if segment is None else _shown(_text(regrown, segment.token_ids).strip())


def _reward(leaf: Leaf) -> str:
    if leaf.reward is None or not leaf.reward.is_scored:
        return "not scored" + (f": {leaf.reward.reason}" if leaf.reward is not None and leaf.reward.reason else "")
    return f"{leaf.reward.reward:g}" + (f", answer {leaf.reward.answer!r}" if leaf.reward.answer else "")


def _tools(chain: GrownChain) -> str:
    tools = chain.tools
    refused = f", {tools.num_refused} refused (--offline)" if tools.is_offline else ""
    return f"{tools.num_recorded} results from the journal, {tools.num_made} new calls{refused}"


def _result(regrown: Regrown, chain: GrownChain) -> str:
    number = f"{chain.num_compared} token{'' if chain.num_compared == 1 else 's'}"
    gap = f"{number} before it with log-probs that differ by at most {chain.logprob_gap:.2g} nats"
    gap = f"; {gap}" if chain.num_compared else ""
    found = chain.difference
    if found is None:
        return "the same token by token" + gap.replace(" before it", "")
    ids = [token for each in chain.path for token in each.token_ids]
    at = chain.path[0].end + found.place
    before = _shown(repr(_text(regrown, ids[max(0, at - _AROUND) : at])))
    one, other = (_token(regrown, each) for each in (found.saved, found.regrown))
    return f"the first difference is token {found.place} of the response: {one}, now {other}, after {before}{gap}"


def _token(regrown: Regrown, token: int | None) -> str:
    return "the end" if token is None else f"{_shown(repr(_text(regrown, [token])))} ({token})"


def _plain_difference(regrown: Regrown, found: Difference | None) -> dict[str, Any] | None:
    if found is None:
        return None
    texts = {name: None if token is None else _text(regrown, [token]) for name, token in _sides(found)}
    return {"place": found.place, **texts, "token_ids": dict(_sides(found))}


def _sides(found: Difference) -> tuple[tuple[str, int | None], ...]:
    return ("saved", found.saved), ("regrown", found.regrown)


def _plain_chain(regrown: Regrown, leaf: Leaf, path: Sequence[Segment]) -> dict[str, Any]:
    reward = leaf.reward
    return {
        "chain": chain_name(leaf),
        "ended_by": leaf.stop_reason.value,
        "reward": reward.reward if reward is not None and leaf.is_scored else None,
        "answer": None if reward is None else reward.answer,
        "segments": [
            {
                "source": each.source.value,
                "text": _text(regrown, each.token_ids),
                "token_ids": each.token_ids,
                **({"status": each.tool_result.status.value} if each.tool_result is not None else {}),
                **({"logprobs": each.logprobs} if each.source is SegmentSource.POLICY else {}),
            }
            for each in path
        ],
    }
