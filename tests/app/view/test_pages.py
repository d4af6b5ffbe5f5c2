"""A page is one file that loads nothing and runs nothing but its own program, whatever stands in the trees."""

import base64
import hashlib
import re
from dataclasses import replace

import pytest

from aepo_lightning.app.view.decisions import Explainer
from aepo_lightning.app.view.pages import Live, Shown, make_page
from aepo_lightning.policy.tokenizers import build_byte_tokenizer
from aepo_lightning.training.group_rows import GroupRows
from aepo_lightning.training.presets import AEPO
from tests.support.viewed import HOSTILE, data_of, hostile_tree, large_tree, opened

TOKENIZER = build_byte_tokenizer()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of all hostile trees, and of one with a long line."""
    texts = {**HOSTILE, "long": "<b>" + "x" * 2**20}
    trees = [hostile_tree(name, text, TOKENIZER) for name, text in texts.items() if name != "long"]
    trees.append(hostile_tree("long", texts["long"][:5000], TOKENIZER))
    trees[-1].segments[2].tool_result = trees[-1].segments[2].tool_result.__class__(text=texts["long"])
    return make_page(opened(tmp_path_factory.mktemp("run")), HOSTILE["script"], trees)


def without_data(page):
    return re.sub(r'<script type="text/plain" id="data-[a-z0-9-]+">[A-Za-z0-9+/=]*</script>\n', "", page)


def test_the_markup_is_the_same_whatever_the_data_say(page, tmp_path):
    other = make_page(opened(tmp_path), "x", [hostile_tree("a", "x", TOKENIZER)])
    assert without_data(page) == without_data(other)
    assert "data-piece-" not in without_data(page)


def test_every_text_comes_back_as_it_was(page):
    data = data_of(page)
    trees = [tree for name, each in data.items() if name.startswith("piece") for tree in each]
    assert data["head"]["name"] == HOSTILE["script"]
    assert [tree["id"] for tree in trees] == [row["id"] for row in data["head"]["questions"]]
    for tree, text in zip(trees, HOSTILE.values(), strict=False):
        assert tree["messages"] == [[text[:50], text]]
        assert tree["segments"][2]["result"]["text"] == tree["leaves"][0]["reward"]["answer"] == text
        assert tree["segments"][2]["call"]["arguments"] == {text[:50]: text}
    assert len(trees[-1]["segments"][2]["result"]["text"]) == 2**20 + 3
    for row in data["head"]["questions"]:
        number, place = row["place"]
        assert data[f"piece-{number}"][place]["id"] == row["id"]


def test_the_policy_of_the_page_names_its_own_program_and_nothing_else(page, tmp_path):
    (rules,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    (program,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in (program, style)]
    expected = "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'"
    assert rules == expected.format(*digests)
    served = make_page(opened(tmp_path), "x", [], Shown(live=Live(name="x", version="1")))
    assert "connect-src 'self'" in served
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(|new Function|outerHTML", program)
    addresses = set(re.findall(r"https?://[\w./]*", without_data(page)))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of a namespace, which nobody asks for"


def test_numbers_keep_four_digits_and_shared_texts_stand_once(tmp_path):
    trees = [large_tree(number, TOKENIZER, num_leaves=4) for number in range(3)]
    data = data_of(make_page(opened(tmp_path), "x", trees))
    (found,) = [each for name, each in data.items() if name == "piece-0"]
    assert len(set(data["vocabulary"])) == len(data["vocabulary"])
    for tree, plain in zip(trees, found, strict=True):
        for segment, each in zip(tree.segments, plain["segments"], strict=True):
            assert "".join(data["vocabulary"][number] for number in each["tokens"]) == TOKENIZER.decode(
                segment.token_ids, clean_up_tokenization_spaces=False
            )
            assert [value / data["head"]["unit"] for value in each.get("H", [])] == pytest.approx(
                segment.entropies, abs=5.1e-5
            )
        assert [leaf["trunk"] for leaf in plain["leaves"]] == [None, 0, None, 2]


def test_what_is_not_known_is_absent(tmp_path):
    tree = large_tree(0, TOKENIZER, num_leaves=4)
    evaluated = replace(opened(tmp_path), explainer=Explainer(rule=None, absence="Nothing branches.", can_branch=False))
    data = data_of(make_page(evaluated, "x", [tree]))
    (plain,) = data["piece-0"]
    assert plain["decisions"] == []
    assert data["head"]["rule"] == {"absence": "Nothing branches."}
    assert {"gap", "ratio", "clip"} <= set(data["head"]["absences"])
    assert all("span" not in segment for segment in plain["segments"])
    assert [leaf["advantage"] for leaf in plain["leaves"]] == [None] * 4


def test_advantages_are_those_of_the_update_before_shaping(tmp_path):
    algorithm = AEPO(budget=4)
    folder, tree = opened(tmp_path, algorithm=algorithm), large_tree(0, TOKENIZER, num_leaves=4)
    rows = GroupRows(advantage_estimator=algorithm.advantage_estimator)(tree, 0)
    assert folder.advantages(tree) == [row.advantage for row in rows]
    tree.leaves[1].reward = replace(tree.leaves[1].reward, is_scored=False)
    found = folder.advantages(tree)
    assert found[1] is None
    assert None not in (found[0], found[2], found[3])
    tree.leaves[1].reward = None
    assert folder.advantages(tree) is None
