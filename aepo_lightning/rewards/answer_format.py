r"""The grammar of a trajectory as the paper's reward checks it: a few counts and orders of tags, not a parser.

The check looks at the whole response text, tool results included. What it does not see (text between the blocks, a
`<result>` nobody asked for, thoughts after the answer) is allowed.
"""

from collections.abc import Sequence


def find_format_problem(text: str, tool_tags: Sequence[str]) -> str:
    r"""Name the first rule of the trajectory grammar that a response breaks.

    The rules, in the order of the checks: as many `<think>` as `</think>`, at least one; exactly one `<answer>` and one
    `</answer>`, in this order; each tool tag, from left to right, followed by its closing tag, `<result>` and
    `</result>` in this order; `\boxed{` and `}` inside the answer.

    Args:
        text: Everything after the prompt.
        tool_tags: Names of the tools whose calls are checked.

    Returns:
        One sentence about the broken rule, or an empty string for a well-formed response.

    References:
        ARPO, arXiv:2507.19849, eq. 8 ("if the format is good"), which AEPO, arXiv:2510.14545, trains with as well. The
        checks are those of the released reward function.
    """
    problem = _think_problem(text) or _answer_problem(text)
    for tag in tool_tags:
        problem = problem or _tool_problem(text, tag)
    return problem or _box_problem(text)


def perfect_response(answer: str) -> str:
    """Return a response that is well-formed if this answer can stand in a box."""
    return rf"<think> </think><answer>\boxed{{{answer}}}</answer>"


def _think_problem(text: str) -> str:
    num_opened, num_closed = text.count("<think>"), text.count("</think>")
    if num_opened != num_closed:
        return f"<think> occurs {num_opened} times but </think> {num_closed} times."
    return "" if num_opened else "There is no <think> block."


def _answer_problem(text: str) -> str:
    for tag in ("<answer>", "</answer>"):
        if (count := text.count(tag)) != 1:
            return f"{tag} occurs {count} times instead of once."
    return "" if text.find("<answer>") < text.find("</answer>") else "</answer> stands before <answer>."


def _tool_problem(text: str, tag: str) -> str:
    start = text.find(f"<{tag}>")
    while start != -1:
        result = text.find("<result>", start)
        # Each is the first after the call opens (`</result>`: after `<result>`), not the first that would fit.
        order = (start, text.find(f"</{tag}>", start), result, text.find("</result>", result))
        if -1 in order:
            return f"A <{tag}> call lacks its closing tag or its <result> block."
        if sorted(order) != list(order):
            return f"The tags of a <{tag}> call and its <result> block are out of order."
        start = text.find(f"<{tag}>", order[-1])
    return ""


def _box_problem(text: str) -> str:
    answer = text[text.find("<answer>") : text.find("</answer>")]
    return "" if r"\boxed{" in answer and "}" in answer else r"The answer holds no \boxed{...}."
