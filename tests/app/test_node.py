"""Names of nodes: as the address of a page has them, and what is said where there is no such node."""

import pytest

from aepo_lightning.app.node import NodeName, find_node
from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.tokenizers import build_byte_tokenizer
from aepo_lightning.rollout import RolloutJournal
from tests.support.viewed import large_tree

TREES = [large_tree(number, build_byte_tokenizer(), num_leaves=4, num_tokens=4) for number in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two iterations with a question each."""
    path = tmp_path_factory.mktemp("run")
    for number, tree in enumerate(TREES):
        RolloutJournal(path / "rollouts").append(f"train-{number:05d}-rank0", tree)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("28:trail-train-28", {"question": "28:trail-train-28"}),
        ("q=28:a&leaf=r/1/b/2/0&seg=4", {"question": "28:a", "leaf": "r/1/b/2/0", "segment": 4}),
        ("#q=28%3Aa+b%26c&leaf=3&tab=siblings", {"question": "28:a b&c", "leaf": "3"}),
        ("leaf=1&q=a&token=12", {"question": "a", "leaf": "1", "token": 12}),
        ("http://127.0.0.1:8008/train-00012.html#q=a", {"question": "a", "rollout": "train-00012"}),
        (
            "file:///tmp/a%20b/view/train-00003.html#q=a&seg=0",
            {"question": "a", "segment": 0, "rollout": "train-00003"},
        ),
    ],
)
def test_an_address_is_read_as_the_page_writes_it(text, expected):
    assert NodeName.parse(text) == NodeName(**expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("leaf=1&seg=2", r"must name a question \(q=...\), but got 'leaf=1&seg=2'"),
        ("page.html#", "must name a question"),
        ("q=&leaf=1", "must name a question"),
        ("q=a&seg=-1", "`seg` of `--node` must be a number from 0 on, but got '-1'"),
        ("q=a&token=x", "`token` of `--node` must be a number"),
        (f"q=a&token={'9' * 5000}", "`token` of `--node` must be a number"),
    ],
)
def test_what_is_no_name_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        NodeName.parse(text)


def test_every_node_is_found_by_the_name_that_it_gives_itself(folder):
    for number, tree in enumerate(TREES):
        for leaf in tree.leaves:
            path = "/".join(map(str, leaf.seed_path))
            for place, segment in enumerate(tree.path(leaf.segment_id)):
                name = NodeName(question=f"q{number}", leaf=path, segment=segment.segment_id)
                node = find_node(folder, name)
                assert (node.iteration, node.leaf.seed_path, node.place) == (number, leaf.seed_path, place)
                assert node.segment == segment
                assert NodeName.parse(str(node)) == name


def test_a_token_is_counted_from_the_start_of_the_response(folder):
    node = find_node(folder, NodeName.parse("q=q1&leaf=r/1&token=3"))
    assert (node.place, node.token) == (1, 3)
    result = len(node.path[2].token_ids)
    later = find_node(folder, NodeName.parse(f"q=q1&leaf=r/1&token={4 + result + 2}"))
    assert (later.place, later.token, str(later)) == (
        3, 2, f"q=q1&leaf=r/1&seg={later.segment.segment_id}&token={4 + result + 2}"
    )  # fmt: skip


def test_a_segment_alone_is_that_of_the_first_trajectory_through_it(folder):
    tree = TREES[0]
    branch = next(leaf for leaf in tree.leaves if len(leaf.seed_path) > 2)
    own = tree.path(branch.segment_id)[-1].segment_id
    assert find_node(folder, NodeName(question="q0", segment=own)).leaf.seed_path == branch.seed_path
    assert find_node(folder, NodeName(question="q0")).leaf.seed_path == tree.leaves[0].seed_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q7", r"none of the 2 in train-00000 to train-00001 is 'q7'. The first are 'q0', 'q1'\."),
        (f"q=q0&leaf={'9' * 5000}", "`--leaf` must be one of"),
        ("q=q0&leaf=r/9", r"`--leaf` must be one of r/0, r/0/b/\d/0, r/1"),
        ("q=q0&leaf=r/0&seg=999", r"one of trajectory r/0: 0 \(prompt\), 1 \(turn\), 2 \(result of 'search'\)"),
        ("q=q0&leaf=r/0&token=999", r"one of the \d+ of the response of trajectory r/0, .* but got 999"),
        ("q=q0&leaf=r/0&seg=1&token=5", "Token 5 must lie in segment 1, but lies in 2"),
        ("train-00007.html#q=q0", r"train-00007 has none in .* \(train-00000 to train-00001 have\)"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(folder, text, message):
    with pytest.raises(ConfigError, match=message):
        find_node(folder, NodeName.parse(text))


def test_an_iteration_can_be_asked_for(folder):
    with pytest.raises(ConfigError, match="none of the 1 in train-00001 is 'q0'"):
        find_node(folder, NodeName(question="q0"), iteration=1)
    assert find_node(folder, NodeName(question="q1", rollout="train-00000"), iteration=1).iteration == 1


def test_a_run_without_trees_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="must hold finished rollouts"):
        find_node(tmp_path, NodeName(question="q"))
