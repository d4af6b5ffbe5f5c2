"""Old and new side by side: in words, as JSON and on a page."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from aepo_lightning.app.kept_weights import KeptWeights
from aepo_lightning.app.node import Node
from aepo_lightning.app.regrow import command, page
from aepo_lightning.app.regrow.regrown import Regrown, Wish, compare
from aepo_lightning.app.regrow.start import Start, find_start
from aepo_lightning.app.regrow.told import plain, told
from aepo_lightning.app.regrow.tools import JournalTools, RecordedCalls
from aepo_lightning.app.view.token_text import TokenTexts
from aepo_lightning.policy.tokenizers import build_byte_tokenizer
from aepo_lightning.rollout import Continuation, tree_from_dict, tree_to_dict
from aepo_lightning.tools import DocumentSearch, ToolRuntime
from tests.support.builders import ScriptedEngine, calls_then_answer, grow, make_parts, make_question
from tests.support.viewed import HOSTILE, data_of, hostile_tree, opened

ENGINE = ScriptedEngine(calls_then_answer(2))
(TREE,) = grow(ENGINE, budget=1)
NODE = Node(rollout="train-00003", tree=TREE, leaf=TREE.leaves[0], place=2)


def regrown(change=lambda _: None, version=0, **wish):
    """The same trajectory again, as a function has changed it."""
    wish = Wish(**wish)
    start = find_start(NODE, make_question(), wish.edit, make_parts(ENGINE))
    again = tree_from_dict(json.loads(json.dumps(tree_to_dict(TREE))))
    change(again)
    tools = JournalTools(
        recorded=RecordedCalls.of(TREE, ("r", 0), ()), tools=ToolRuntime(tools=(DocumentSearch(),)), is_offline=True
    )
    weights = KeptWeights(version=version, place="weights/0", load=dict)
    return Regrown(
        node=NODE, wish=wish, start=start, weights=weights, chains=[compare(NODE, start, again, tools)],
        texts=TokenTexts(ENGINE.tokenizer), notes=["a note"],
    )  # fmt: skip


def words(found, width=160):
    console = Console(file=io.StringIO(), width=width, markup=False, emoji=False, highlight=False)
    for each in told(found):
        console.print(each, soft_wrap=True)
    return console.file.getvalue()


def other_token(tree):
    tree.segments[3].token_ids[1] += 1
    tree.segments[3].logprobs[0] -= 0.25


def test_what_came_out_the_same_says_so():
    found = regrown()
    text = words(found)
    assert found.must_be_same
    assert found.chains[0].difference is None
    assert "q=q&leaf=r/0&seg=2, in train-00003: after the result of 'search'" in text
    assert "weights/0, after 0 optimiser steps: those that grew the tree" in text
    assert "the same token by token; 12 tokens with log-probs that differ by at most 0 nats" in text
    assert "note      a note" in text
    assert "0 results from the journal, 0 new calls, 0 refused (--offline)" in text


def test_the_first_difference_is_told_with_what_stands_before_it():
    (chain,) = regrown(other_token).chains
    assert (chain.difference.place, chain.num_compared, chain.logprob_gap) == (8, 1, 0.25)
    text = words(regrown(other_token))
    assert "the first difference is token 8 of the response: 'e1' (20), now 'e2' (21), after '" in text
    assert "<result> go e1 </result> <search>'; 1 token before it with log-probs that differ by at most 0.25" in text


def test_an_end_that_comes_sooner_is_a_difference():
    def cut(tree):
        tree.leaves[0].segment_id = 4
        del tree.segments[5:]

    (chain,) = regrown(cut).chains
    assert chain.difference.regrown is None
    assert "now the end, after" in words(regrown(cut))


def test_nothing_is_said_of_log_probs_where_none_are_compared():
    def other_first(tree):
        tree.segments[3].token_ids[0] += 1

    assert "log-probs" not in words(regrown(other_first))


@pytest.mark.parametrize(
    ("version", "wish", "expected"),
    [
        (4, {}, "after 4 optimiser steps: 4 more than those that grew the tree, which were not kept"),
        (4, {"checkpoint": Path("a")}, "4 more than those that grew the tree, which are not asked for"),
        (None, {"checkpoint": Path("a")}, "does not say its optimiser steps; the tree grew after 0"),
    ],
    ids=["nearest", "asked for", "unknown"],
)
def test_other_weights_are_told_with_their_distance(version, wish, expected):
    found = regrown(version=version, **wish)
    assert expected in words(found)
    assert not found.must_be_same


@pytest.mark.parametrize("wish", [{"edit": "go e5"}, {"seed": 3}])
def test_what_was_changed_need_not_be_the_same(wish):
    assert not regrown(**wish).must_be_same


def test_seeds_and_further_continuations_are_told():
    assert f"seeds     those of 3, in place of {TREE.seed}\n" in words(regrown(seed=3))
    assert "seeds     the saved ones; further continuations have their own" in words(regrown(samples=2))


def test_json_has_both_trajectories_and_where_they_part():
    found = json.loads(json.dumps(plain(regrown(other_token, edit="go e5"))))
    assert (found["node"], found["iteration"], found["edit"]) == ("q=q&leaf=r/0&seg=2", 3, "go e5")
    (new,) = found["regrown"]
    assert new["is_same"] is False
    parts = new["first_difference"]
    assert (parts["place"], parts["token_ids"]) == (8, {"saved": 20, "regrown": 21})
    assert (parts["saved"].strip(), parts["regrown"].strip()) == ("e1", "e2")
    assert [each["source"] for each in found["saved"]["segments"]] == ["prompt", *("policy", "tool") * 2, "policy"]
    assert found["saved"]["reward"] == TREE.leaves[0].reward.reward


@pytest.mark.parametrize("name", ["controls", "directions", "surrogates", "script"])
def test_a_terminal_obeys_no_text_of_a_model_or_tool(name):
    tokenizer = build_byte_tokenizer()
    tree = hostile_tree(name, HOSTILE[name], tokenizer)
    node = Node(rollout="train-00000", tree=tree, leaf=tree.leaves[0], place=0)
    continuation = Continuation(seed_path=("r", 0))
    start = Start(
        question=tree.question, continuation=continuation, what="", first_shown=0, first_written=1
    )  # fmt: skip
    other = replace(tree, leaves=tree.leaves[1:])
    chain = compare(node, start, other, regrown().chains[0].tools)
    assert chain.difference is not None
    texts = TokenTexts(tokenizer)
    found = replace(regrown(), node=node, start=start, chains=[chain], texts=texts, notes=[])
    assert all(each.isprintable() or each == "\n" for each in words(found))
    json.dumps(plain(found)).encode()


def test_the_page_has_both_from_the_node_on(tmp_path, monkeypatch):
    monkeypatch.setattr(page.OpenedFolder, "open", lambda path, _: opened(path, ENGINE.tokenizer))
    page.write_page(tmp_path / "new" / "a.html", tmp_path, regrown(other_token))
    data = data_of((tmp_path / "new" / "a.html").read_text(encoding="utf-8"))
    assert "advantage" in data["head"]["absences"]
    (tree,) = data["piece-0"]
    assert [leaf["chain"] for leaf in tree["leaves"]] == ["r/0", "r/0/regrown/0"]
    shared = [number for number, each in enumerate(tree["segments"]) if each.get("branches")]
    assert shared == [2], "they part after the result"
    assert len(tree["segments"]) == 6 + 3


def test_a_page_that_cannot_be_written_takes_nothing_of_what_was_grown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "regrow", lambda *_: regrown(other_token))
    monkeypatch.setattr(page.OpenedFolder, "open", lambda path, _: opened(path, ENGINE.tokenizer))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="must be a path that can be written"):
        command.main([str(tmp_path), "--node", "q", "--html", str(tmp_path / "file" / "a.html")])
    assert "the first difference is token 8" in capsys.readouterr().out


def test_another_question_is_a_tree_of_its_own():
    def other_prompt(tree):
        tree.segments[0].token_ids[-1] += 1

    trees = page.shown_trees(regrown(other_prompt))
    assert [tree.question.question_id for tree in trees] == ["q", "q, regrown"]
    assert [len(tree.leaves) for tree in trees] == [1, 1]
    assert trees[0].segments == [replace(each, is_branch_point=False, span_s=None) for each in TREE.segments]


def test_a_number_of_continuations_without_meaning_is_refused():
    with pytest.raises(ValueError, match="`--samples` must be at least 1, but got 0"):
        Wish(samples=0)
