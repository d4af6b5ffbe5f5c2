import unicodedata
from dataclasses import replace

import markdown
import pytest
from markdown_it import MarkdownIt

from aepo_lightning.callbacks import RolloutLogger
from aepo_lightning.callbacks.rollout_logger import describe_tree
from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import Message, Question, SegmentSource
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.contracts.tool import ToolCall, ToolResult, ToolStatus
from aepo_lightning.contracts.tree import Leaf, LeafOrigin, RolloutTree
from aepo_lightning.errors import ConfigError


def make_tree(rewards=(0.5, 1.0)):
    """A prompt, a turn and a tool result that all leaves share, and one last turn for each leaf."""
    question = Question(
        question_id="q7", messages=(Message(role="user", content="find e3 c1"),), answers=("e5", "five")
    )
    tree = RolloutTree(question=question)
    tree.add(None, SegmentSource.PROMPT, [1, 2, 3])
    tree.add(0, SegmentSource.POLICY, [10, 11], logprobs=[-1.0, -1.0], entropies=[0.5, 1.0])
    tree.add(
        1,
        SegmentSource.TOOL,
        [20],
        tool_call=ToolCall(tool="search", text="e3"),
        tool_result=ToolResult(text="e5", status=ToolStatus.TIMEOUT),
        is_branch_point=True,
    )
    for index, reward in enumerate(rewards):
        last = tree.add(2, SegmentSource.POLICY, [30 + index], logprobs=[-1.0], entropies=[0.25])
        scored = RewardOutput(reward=reward, is_correct=reward == 1.0, is_well_formed=True, reason="because")
        origin = LeafOrigin.BRANCH if index else LeafOrigin.PROBE
        tree.leaves.append(
            Leaf(
                segment_id=last.segment_id,
                origin=origin,
                stop_reason=StopReason.EOS,
                seed_path=("r", index),
                num_tool_calls=1,
                reward=scored,
            )
        )
    return tree


def decode(token_ids):
    return " ".join(f"w{token}" for token in token_ids)


def test_writes_question_segments_tools_branches_and_reward():
    text = describe_tree(make_tree(), decode, 1)
    expected = """## Question q7

```text
find e3 c1
```

Accepted answers: e5; five

### Trajectory 2 of 2: reward 1.000, correct (because)

Origin branch, ended by eos, 1 tool calls.

**policy**, 2 tokens, mean entropy 0.750 nats

```text
w10 w11
```

**tool**, 1 tokens, search: timeout, **branch point**

```text
w20
```

**policy**, 1 tokens, mean entropy 0.250 nats

```text
w31
```
"""  # mean entropy: (0.5 + 1.0) / 2
    assert text == expected


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        pytest.param(1, [2], id="the best"),
        pytest.param(2, [2, 1], id="best and worst"),
        pytest.param(3, [2, 3, 1], id="evenly between"),
        pytest.param(9, [2, 4, 3, 5, 1], id="all there are"),
    ],
)
def test_shows_trajectories_from_best_to_worst(number, shown):
    text = describe_tree(make_tree(rewards=(0.0, 1.0, 0.5, 0.75, 0.25)), decode, number)
    found = [int(line.split()[2]) for line in text.splitlines() if line.startswith("### Trajectory")]
    assert found == shown


def test_a_trajectory_without_a_reward_comes_last_and_says_why():
    tree = make_tree(rewards=(0.0, 1.0))
    tree.leaves[1].reward = replace(tree.leaves[1].reward, is_scored=False)
    headings = [line for line in describe_tree(tree, decode, 2).splitlines() if line.startswith("### ")]
    assert headings == [
        "### Trajectory 1 of 2: reward 0.000, not correct (because)",
        "### Trajectory 2 of 2: no reward (because)",
    ]


def test_a_fence_is_longer_than_the_backticks_inside():
    text = describe_tree(make_tree(), lambda _: "```python\nx\n```", 1)
    assert "````text\n```python\nx\n```\n````" in text


HOSTILE = {
    "heading": "a\n# Iteration 99\n\nreward 1.000",
    "carriage return": "a\r# Iteration 99\r\rb",
    "setext": "a\n===\nb\n---",
    "fence": "```\n# out\n~~~\n# out\n````\n# out",
    "longer fence": "`" * 40 + "\n# out",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)><h1>x</h1> &lt;",
    "comment": "<!-- the rest is hidden",
    "link": "[click](http://evil.example) ![x](http://evil.example/x.png) <http://evil.example>",
    "reference": "[a]\n\n[a]: http://evil.example\n",
    "plain link": "see www.evil.example or http://evil.example or a@evil.example",
    "escape": "\x1b]0;title\x07\x1b[2J\x9b31m\x08\x7f",
    "hyperlink": "\x1b]8;;http://evil.example\x1b\\\\click\x1b]8;;\x1b\\\\",
    "turned": "\u202egnp.exe \u2066x\u2069 \u200bnothing \U000e0041",
    "unwritable": "\ud800 \x00 \u2028 \x85",
    "ticks": "`` ` ```",
    "backslash": "\\",
    "emphasis": "**bold** _a_ ~~b~~ # |",
    "blank": " ",
}


def spoilt(text):
    """A tree whose every part that somebody else writes is a text."""
    tree = make_tree()
    message = Message(role="user", content=text)
    tree.question = replace(tree.question, question_id=text, messages=(message,), answers=(text, "e5"))
    tree.segments[2].tool_call = ToolCall(tool=text, text=text)
    for leaf in tree.leaves:
        leaf.reward = replace(leaf.reward, reason=text)
    return tree


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_others_wrote_does_nothing_to_the_page_or_the_terminal(text, tmp_path):
    written = describe_tree(spoilt(text), lambda _: text, 2)
    (tmp_path / "trajectories.md").write_text(written, encoding="utf-8")
    assert not [char for char in written if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl")]
    tokens = MarkdownIt("commonmark").enable("table").parse(written)
    inline = [child.type for token in tokens for child in token.children or ()]
    kinds = [token.type for token in tokens] + inline
    assert kinds.count("heading_open") == 3
    assert kinds.count("fence") == 1 + 3 * 2
    foreign = {"html_block", "html_inline", "link_open", "image", "em_open", "table_open", "code_block"}
    assert not foreign & set(kinds)
    # Bold are the sources of the segments and the branch point; a link without brackets stands in code.
    assert kinds.count("strong_open") == 2 * 3 + 2
    plain = "".join(child.content for token in tokens for child in token.children or () if child.type == "text")
    assert not any(word in plain for word in ("http", "www", "@"))
    page = markdown.markdown(written, extensions=["fenced_code", "tables"])  # as TensorBoard shows it
    assert page.count("<h") == 3
    assert not any(mark in page for mark in ("<a ", "<img", "<script", "<em", "<table", "<!--"))


@pytest.mark.parametrize("text", ["12:trail-train-3", "e5", "3.14 (about)", "\u4e2d\u6587 \u0646\u0647"])
def test_harmless_text_stays_as_it_is(text):
    assert f"## Question {text}\n" in describe_tree(spoilt(text), decode, 1)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b", "`a_b`"),
        ("a`b", "``a`b``"),
        ("`", "`` ` ``"),
        ("a\nb", "`a\\nb`"),
        ("\u0646\u200c\u0647", "`\u0646\u200c\u0647`"),
        ("", ""),
    ],
    ids=repr,
)
def test_other_text_stands_in_code(text, shown):
    assert f"### Trajectory 2 of 2: reward 1.000, correct{f' ({shown})' * bool(text)}\n" in describe_tree(
        spoilt(text), decode, 1
    )


def test_writes_every_n_epochs_to_the_loggers_and_to_the_file(make_run, tmp_path):
    run = make_run([RolloutLogger(every_n_epochs=2, num_trajectories=3)], max_epochs=3).fit()
    texts = run.logger.experiment.texts
    assert [(tag, step) for tag, _, step in texts] == [("rollout/trajectories", 0), ("rollout/trajectories", 4)]
    assert (tmp_path / "trajectories.md").read_text() == "".join(f"{text}\n" for _, text, _ in texts)
    assert texts[1][1].startswith("# Iteration 2, optimiser step 4\n")
    assert texts[1][1].count("### Trajectory") == 3


def test_takes_the_question_whose_rewards_differ_most(make_run):
    run = make_run([RolloutLogger()]).fit()
    spread = {tree.question.question_id: max(tree.rewards) - min(tree.rewards) for tree in run.datamodule.trees}
    assert f"## Question {max(spread, key=spread.get)}\n" in run.logger.experiment.texts[0][1]


@pytest.mark.parametrize("name", ["every_n_epochs", "num_trajectories"])
def test_refuses_numbers_that_are_not_positive(name):
    with pytest.raises(ConfigError, match=f"`{name}` must be at least 1, but got 0"):
        RolloutLogger(**{name: 0})
