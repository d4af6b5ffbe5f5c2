"""The page in a real browser: what a reader does, with texts that want to break out, and with many trees."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from aepo_lightning.app.view.pages import Shown, make_page
from aepo_lightning.app.view.updates import LeafUpdate, TreeUpdate, key_of
from aepo_lightning.contracts.tool import ToolResult
from aepo_lightning.policy.tokenizers import build_byte_tokenizer
from tests.support.chromium import FETCHED, Browser, find_chromium
from tests.support.viewed import HOSTILE, RULE, hostile_tree, large_tree, opened

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: `make browser`, or set AEPO_CHROMIUM to one"),
]
TOKENIZER = build_byte_tokenizer()
SIX = [large_tree(number, TOKENIZER, num_leaves=6) for number in range(30)]
OPEN_S, STEP_S = 2.0, 0.5
"""What is promised for 1,000 trees of 16 leaves: until they are there, and until a key has had its effect."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def written(folder, trees, name="train-00000", **options):
    path = folder / "page.html"
    path.write_text(make_page(opened(folder), name, trees, Shown(**options)), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return written(tmp_path_factory.mktemp("page"), SIX)


@pytest.fixture
def page(browser, address):
    """The page of thirty trees, just opened."""
    browser.log.clear()
    browser.open(address)
    yield browser
    assert browser.log == []


def texts(browser, selector):
    return browser.value(f"[...document.querySelectorAll({selector!r})].map((node) => node.textContent)")


def at(browser):
    return dict(browser.value("[...new URLSearchParams(location.hash.slice(1))]"))


def test_questions_come_by_surprise_and_a_click_shows_a_segment_and_a_decision(page):
    spreads = page.value("order.map((row) => row.spread)")
    assert spreads == sorted(spreads, reverse=True)
    assert len(texts(page, "#questions .question")) == 30
    page.click("#questions li:nth-child(3) .question")
    page.wait_for("document.querySelector('#questions li:nth-child(3) .question[aria-current]')")
    assert len(texts(page, "#tree .leaf")) == 6
    page.click("#tree .node.decision")
    page.wait_for("document.querySelector('.others')")
    decision = page.value("shownTree.decisionAt.get(Number(state.seg))")
    numbers = texts(page, ".facts.numbers dd")
    assert [float(numbers[index]) for index in (0, 1, 2, 6)] == pytest.approx(
        [decision["H"], decision["H0"], decision["change"], decision["u"]], abs=1e-6
    )
    assert len(texts(page, ".others td.own")) == 4, "alpha, gamma, tau, penalty"
    page.click("#tree .leaf:nth-of-type(2)")
    page.wait_for("document.querySelector('#tab-path[aria-selected=true]')")
    assert len(texts(page, "#detail .segment")) == len(page.value("shownTree.leaves[state.leaf].path"))
    titles = page.value("[...document.querySelectorAll('#detail .segment .token')].map((node) => node.title)")
    places = [title.split(" · ")[0] for title in titles]
    prompt = places.count("of the prompt")
    assert places[prompt:] == [f"token {place} of the response" for place in range(len(places) - prompt)]


def test_what_other_settings_do_is_what_python_says(page):
    """The page only shows it: every cell is compared with the rule itself."""
    from tests.app.view.test_decisions import context_of

    trees = {tree.question.question_id: tree for tree in SIX}
    shown = page.value("shownTree.id")
    page.press("b")
    page.wait_for("document.querySelector('.others')")
    names = [text.removesuffix("changes nothing here") for text in texts(page, ".others th")]
    cells = page.value(
        "[...document.querySelectorAll('.others tr')].map((row) => [...row.querySelectorAll('td')].map("
        "(cell) => [Number(cell.querySelector('b').textContent), cell.className.includes('yes')]))"
    )
    place = page.value("[...shownTree.decisions].findIndex((each) => each.segment === Number(state.seg))")
    context = context_of(trees[shown], trees[shown].decisions[place])
    assert names == ["alpha", "gamma", "tau", "penalty_per_step"]
    for name, row in zip(names, cells, strict=True):
        for value, is_branch in row:
            assert is_branch == bool(replace(RULE, **{name: float(value)}).num_branches(context))


def test_the_keyboard_reaches_everything(page):
    first = page.value("state.q")
    page.press("j")
    page.wait_for(f"state.q !== {first!r} && shownTree.id === state.q")
    page.press("k")
    page.wait_for(f"shownTree.id === {first!r}")
    page.press("ArrowDown")
    page.wait_for("state.leaf !== 0")
    page.press("ArrowRight")
    page.press("ArrowRight")
    page.wait_for("document.querySelector('.segment.picked')")
    page.press("3")
    page.wait_for("document.querySelector('.siblings .token.first')")
    firsts = texts(page, ".siblings .sibling .token.first")
    assert len(firsts) >= 2
    assert len(set(firsts)) >= 2, "they differ there"
    page.press("4")
    page.wait_for("document.querySelector('#detail .absent')")
    page.press("c")
    assert at(page)["color"] == "logprob"
    page.press("t")
    assert page.value("document.documentElement.dataset.theme") in ("dark", "light")
    page.press("?")
    page.wait_for("document.getElementById('help').open")
    page.press("Escape")
    page.wait_for("!document.getElementById('help').open")


def test_the_keyboard_stays_where_it_was(page):
    """What is drawn again takes the place of what had the focus."""
    for part, key in (("#tree .node.decision", "segment"), ("#tree .leaf:nth-of-type(3)", "leaf")):
        page.value(f"document.querySelector({part!r}).focus()")
        chosen = page.value(f"document.activeElement.dataset.{key}")
        page.press("Enter")
        page.wait_for(f"document.activeElement.dataset.{key} === {chosen!r}")
    page.value("look({tab: 'path'})")
    page.value("document.getElementById('color').focus()")
    page.value("look({color: 'mask'})")
    assert page.value("document.activeElement.id") == "color"
    page.value("document.querySelector('.strip').focus()")
    page.press("Enter")
    page.wait_for("document.activeElement.id === 'detail'")


def test_arrows_lead_from_tab_to_tab_and_scroll_what_is_wide(page):
    page.value("document.getElementById('tab-path').focus()")
    for key, tab in (("ArrowRight", "branch"), ("ArrowLeft", "path"), ("ArrowLeft", "facts"), ("ArrowRight", "path")):
        page.press(key)
        assert page.value("document.activeElement.id") == f"tab-{tab}"
        page.wait_for(f"document.getElementById('detail').getAttribute('aria-labelledby') === 'tab-{tab}'")
    assert "seg" not in at(page)
    page.press("b")
    page.wait_for("document.querySelector('.wide')")
    before = at(page)
    page.value("document.querySelector('.wide').focus()")
    page.press("ArrowRight")
    assert at(page) == before


def test_what_keys_change_is_said(page):
    page.press("j")
    page.wait_for("shownTree.id === state.q")
    said = "document.getElementById('said').textContent"
    assert page.value(said) == page.value("`${order[1].text}. ${leafTexts(shownTree.leaves[0], 0).name}`")
    page.press("ArrowDown")
    page.wait_for("state.leaf !== 0")
    assert page.value("document.querySelectorAll('#tree .leaf[aria-current]').length") == 1
    assert page.value("document.querySelector('#tree .leaf[aria-current]').ariaLabel") in page.value(said)
    page.press("ArrowRight")
    page.wait_for("state.seg !== ''")
    assert page.value(said).endswith(". prompt")
    assert texts(page, "#tree .node[aria-current]") == [""]


def test_an_entropy_is_compared_with_that_of_the_chain_or_the_trajectory(page):
    decided = "{change: %s, H: 1, H0: 1, l: 0, wanted: 0, opened: 0}"
    for change, words in ((1, "more uncertain than"), (-1, "less uncertain than"), (0, "just as uncertain as")):
        told = page.value(f"reason({decided % change})")
        assert told == f"Here the policy was {words} at the start of its trajectory (1 against 1)."
    page.value("head.rule.baseline = 'own'")
    assert "at the start of its chain (" in page.value(f"reason({decided % 0})")
    page.press("b")
    page.wait_for("document.querySelector('.facts.numbers')")
    assert texts(page, ".facts.numbers dt")[1:3] == ["H of the first turn of the chain", "change, H minus that"]


def test_a_chain_of_the_timeline_stands_there_in_words(page):
    parts = "[['generate', 0, 0.5], ['wait', 0.5, 0.6], ['call', 0.6, 1], ['call', 0.6, 0.7], ['generate', 1, 2]]"
    assert page.value(f"laneInWords({parts}, {{origin: 'root'}}, 3)") == (
        "Chain of trajectory 3, root: from 0 µs to 2 s, generation 1.5 s, tools 500 ms."
    )
    assert page.value("laneInWords([], {origin: 'branch'}, 0)") == "Chain of trajectory 0, branch: nothing of its own."


def test_questions_without_rewards_are_not_those_of_equal_rewards(page):
    row = "{spread: 0, rewards: [%s]}"
    assert page.value(f"FILTERS.equal[1]({row % '1, 1'})") is True
    assert page.value(f"FILTERS.equal[1]({row % 'null, null'})") is False


def test_any_number_of_rewards_has_a_worst_and_a_best(page):
    assert page.value("scaleOf(Array(300000).fill(0.5).concat(-1))") == [-1, 0.5]


def test_a_server_that_has_a_problem_has_not_ended(page):
    page.value(
        "asked = 0, fetch = async () => (asked++, new Response('DataError: a line', {status: 500})), hearNews(), null"
    )
    page.wait_for("document.getElementById('news').textContent.includes('DataError: a line')")
    page.wait_for("asked > 1")


def test_a_link_with_words_that_mean_nothing_shows_the_first_question(page, address):
    page.open(address + "#q=none&seg=1.5")
    assert page.value("state.seg") == ""
    page.open(address + "#q=none&leaf=-3&seg=constructor&tab=constructor&color=toString&sort=__proto__&filter=valueOf")
    assert page.value("shownTree.id === order[0].id")
    assert len(texts(page, "#detail .segment")) == len(page.value("shownTree.leaves[0].path"))


def test_siblings_say_how_long_they_are_the_same(page):
    cases = (([3, 4], 0), ([3, 4], 1), ([3, 4], 2), ([3, 4], 3), ([3, 3], 3))
    assert [page.value(f"untilWhere({lengths}, {place})") for lengths, place in cases] == [
        "They differ from the first token on.",
        "The first token is the same, then they differ.",
        "The first 2 tokens are the same, then they differ.",
        "The first 3 tokens are the same, then not all go on.",
        "They are the same to their ends.",
    ]


def test_calls_of_one_turn_lie_side_by_side_in_the_timeline(page):
    """What the first waited for is drawn below what the second did meanwhile."""
    call = "{source: 'tool', span: [0, 1], result: {status: 'ok', queue: 0, duration: %s}}"
    parts = page.value(f"laneParts({{segments: [{call % 0.9}, {call % 0.2}]}}, {{own: [0, 1]}})")
    assert [part[0] for part in parts] == ["wait", "wait", "call", "call"]


def test_search_filter_and_order_choose_questions_and_a_link_leads_back(page, address):
    page.press("/")
    for key in "question 17":
        page.press(key)
    page.wait_for("document.querySelectorAll('#questions .question').length === 1")
    assert page.value("shownTree.id") == "q17"
    page.press("Enter")
    page.press("Escape")
    page.value("look({find: '', filter: 'mixed', sort: 'shared', leaf: 3, color: 'mask', tab: 'siblings'})")
    page.wait_for("document.querySelector('.siblings')")
    shared = page.value("order.map((row) => row.shared)")
    assert shared == sorted(shared, reverse=True)
    link = page.value("location.href")
    before = texts(page, ".siblings")
    page.open(link)
    page.wait_for("document.querySelector('.siblings')")
    assert texts(page, ".siblings") == before
    assert at(page) == {
        "q": "q17",
        "leaf": "3",
        "tab": "siblings",
        "color": "mask",
        "sort": "shared",
        "filter": "mixed",
    }
    word = SIX[4].segments[2].tool_result.text
    page.value(f"look({{find: {word!r}, filter: 'all'}})")
    assert texts(page, "#questions .question") == []
    page.value("searchTexts()")
    assert page.value("order.map((row) => row.id)") == ["q4"]
    page.value("location.hash = '#find=nowhere'")
    page.wait_for("state.find === 'nowhere'")
    assert page.value("order") == [], "what was found for other words is not found for these"
    page.value(f"look({{find: {word!r}}})")
    assert page.value("order.map((row) => row.id)") == ["q4"]
    assert page.value("shownTree.id") == "q4", "the first that was found is shown"


@pytest.mark.parametrize("name", HOSTILE)
def test_what_models_and_tools_write_is_shown_and_never_run(browser, tmp_path, name):
    browser.log.clear()
    browser.requests.clear()
    tree = hostile_tree(name, HOSTILE[name], TOKENIZER)
    address = written(tmp_path, [tree], HOSTILE[name])
    browser.open(address)
    for tab in ("path", "branch", "siblings", "timeline", "facts"):
        browser.value(f"look({{tab: {tab!r}, seg: '2'}})")
        assert browser.value("document.hacked === undefined")
        assert browser.value("document.querySelectorAll('img, iframe, object, embed, link, svg [onload]').length") == 0
    browser.value("look({tab: 'path', seg: ''})")
    shown = browser.value("document.querySelector('.result .text').textContent")
    plain = browser.value(f"plainly({json.dumps(HOSTILE[name])})")
    assert shown == plain, "nothing is lost, and what would be invisible is named"
    assert not set(map(ord, shown)) & {*range(9), *range(11, 32), 0x202E, 0x2028, 0x2066, 0xAD, 0x200B, 0x3164, 0xE0064}
    assert browser.value("document.querySelectorAll('script').length") == 4
    assert browser.log == []
    assert [each for each in browser.requests if each != "about:blank"] == [address]


def test_tokens_have_the_colours_of_the_update_where_its_steps_were_made_again(browser, tmp_path):
    browser.log.clear()
    tree = SIX[0]
    number = sum(len(segment.entropies) for segment in tree.path(tree.leaves[0].segment_id))
    numbers = [place / 1000 for place in range(number)]
    leaf = LeafUpdate(
        gap=numbers, ratio=[1 + each for each in numbers], clip=[n % 3 for n in range(number)], advantage=numbers
    )
    states = ["within the range", "beyond the upper bound, gradient kept", "beyond the lower bound, no gradient"]
    update = TreeUpdate(step=4, loss=0.25, logged_loss=0.25, states=states, leaves={0: leaf})
    address = written(tmp_path, SIX[:2], updates={key_of(tree): update})
    browser.open(f"{address}#q={tree.question.question_id}&color=clip")
    assert browser.value("[...document.querySelectorAll('#color option')].filter((each) => each.disabled).length") == 0
    tokens = browser.value(
        "[...document.querySelectorAll('.segment.policy .token')].map((node) => [node.className, node.title])"
    )
    assert [kind for kind, _ in tokens] == [("token", "token up", "token down")[n % 3] for n in range(number)]
    for place, (_, title) in enumerate(tokens):
        told = f"after shaping {place / 1000:g} · log-prob gap {place / 1000:g} · ratio {1 + place / 1000:g}, "
        assert title.endswith(told + states[place % 3])
    shades = "[...document.querySelectorAll('.segment.policy .token')].map((n) => n.style.getPropertyValue('--shade'))"
    browser.value("look({color: 'gap'})")
    assert browser.value(shades)[:3] == ["0%", "1%", "2%"], "of a tenth of a nat"
    assert texts(browser, ".absent") == []
    browser.value("look({leaf: 1})")
    assert "left out" in texts(browser, ".absent")[0]
    assert browser.value("shownTree.leaves[1].isTrained") is False
    browser.value("look({tab: 'facts'})")
    assert "4: loss 0.25, logged 0.25" in texts(browser, "#detail dd")
    assert browser.log == []


def test_a_tree_that_grows_shows_what_it_has(browser, tmp_path):
    browser.log.clear()
    tree = hostile_tree("grows", "<b>", TOKENIZER)
    tree.segments[0].token_ids = tree.segments[2].token_ids = []
    for leaf in tree.leaves:
        leaf.reward = None
    browser.open(written(tmp_path, SIX[:2], unfinished=[tree]) + "#filter=unfinished")
    (notes,) = texts(browser, "#questions .notes")
    assert (notes[:12], notes[-9:]) == ("not finished", " 1 failed")
    assert [text.split(" ", 1)[1] for text in texts(browser, "#tree .leaf text")] == ["no reward yet "] * 2
    assert "goes on, or was cut off" in texts(browser, "#detail .absent")[0]
    assert "<b>" in texts(browser, ".segment.prompt")[0]
    title = browser.value("document.querySelector('.segment.policy .token').title")
    assert title.startswith("token 0 of the turn")
    for key in "b345":
        browser.press(key)
    browser.value("look({filter: 'wrong'})")
    assert browser.value("order.some((row) => row.unfinished)") is False
    assert browser.log == []


def test_a_line_of_a_megabyte_is_shown_piece_by_piece(browser, tmp_path):
    tree = hostile_tree("long", "<b>", TOKENIZER)
    tree.segments[2].tool_result = ToolResult(text="<b>" + "x" * 2**20)
    tree.segments[1].token_ids = tree.segments[1].token_ids * 4000
    tree.segments[1].logprobs, tree.segments[1].entropies = [[0.0] * 12000] * 2
    assert browser.open(written(tmp_path, [tree])) < 10
    assert browser.value("document.querySelector('.result .text').textContent.length") < 21000
    browser.click(".result .more")
    assert 40000 <= browser.value("document.querySelector('.result .text').textContent.length") < 41000
    assert browser.value("document.querySelectorAll('#segment-1 .token').length") == 1500
    shown = "longText('a' + '\\u{1f600}'.repeat(20000)).textContent"
    assert "U+" not in browser.value(shown), "no character is cut in two"
    tree.segments[2].tool_call = replace(tree.segments[2].tool_call, tool="n" * 2**20, arguments={"a" * 2**20: ""})
    browser.open(written(tmp_path, [tree]))
    assert browser.value("document.querySelector('.call').textContent.length") < 41000
    assert (
        browser.value("Math.max(...[...document.querySelectorAll('[aria-label]')].map((n) => n.ariaLabel.length))")
        < 300
    )
    assert browser.value("document.documentElement.scrollWidth <= innerWidth"), "nothing pushes the page wide"


def test_a_thousand_trees_of_sixteen_leaves_open_in_time_and_stay_responsive(browser, tmp_path):
    trees = [large_tree(number, TOKENIZER) for number in range(1000)]
    address = written(tmp_path, trees)
    browser.open("about:blank", "true")

    def opening():
        browser.open(address)
        return browser.value("performance.getEntriesByName('ready')[0].startTime / 1000")

    def step(key):
        return browser.value(
            f"(async () => {{ const t = performance.now(); await act({key!r}, shownTree)();"
            " document.body.offsetHeight; return (performance.now() - t) / 1000; })()"
        )

    best = min(browser.undisturbed(opening) for _ in range(3))
    steps = [browser.undisturbed(lambda key=key: step(key)) for key in ("j", "j", "b", "3", "ArrowDown", "1")]
    found = f"open {best:.2f} s, steps {[round(step, 3) for step in steps]}"
    assert best < OPEN_S, found
    assert max(steps) < STEP_S, found


def test_axe_finds_nothing_serious(browser, address):
    program = Path(os.environ.get("AEPO_AXE") or FETCHED / "node_modules/axe-core/axe.min.js")
    if not program.is_file():
        pytest.skip("no axe: `make browser`, or set AEPO_AXE to its axe.min.js")
    for theme in ("light", "dark"):
        browser.open(address)
        browser.value(f"document.documentElement.dataset.theme = {theme!r}")
        browser.value(program.read_text(encoding="utf-8") + "; null")
        for tab in ("path", "branch", "siblings", "timeline", "facts"):
            browser.value(f"act('b', shownTree)().then(() => look({{tab: {tab!r}}}))")
            found = browser.value(
                "axe.run().then((found) => found.violations.map((each) => "
                "[each.impact, each.id, each.nodes.slice(0, 3).map((node) => node.html)]))"
            )
            serious = [each for each in found if each[0] in ("serious", "critical")]
            assert serious == [], (theme, tab)
