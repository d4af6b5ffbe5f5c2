"""Slow references for the rules of answers, from their public descriptions, and generated pairs to try both on.

Nothing here uses a regular expression or code of the library: texts are read character by character.
"""

import random

PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
PIECES = [
    "Paris", "the", "The Beatles", "a", "an", "yes", "no", "noanswer", "cat", "Cat.", "C++", "5", "5.0", "-5",
    "\u22125", "1,000", "1000", "$1,000", "50%", "0.5", "1e3", "1E-2", "\uff15", "\uff15\uff10", "e\u0301",
    "\u00e9", "\u0301", "\r\n", "\n", "\t", " ", "  ", ";", ",", ".", "{", "}", "\\{", "\\boxed{", "\\boxed{5}",
    "\\boxed{\\boxed{x}}", "\\text{", "\\text{km}", "<answer>", "</answer>", "<answer>Rome</answer>", "<think>",
    "</think>", "\u5317\u4eac", "inf", "nan", "1_000", "12", "2012", "\u200b", "\U0001f600", "x^2",
    "\\frac{1}{2}", "and", "12:30", "3.5", "35", "()", "!", "New York", "new  york",
]  # fmt: skip

TOOLS = ("search", "python")
TAGS = [f"<{slash}{name}>" for name in ("think", "answer", "result", *TOOLS) for slash in ("", "/")]


def generated_pairs(number, seed=0):
    """Answers beside accepted ones: half of them changed copies, all from pieces that are hard to compare."""
    draw = random.Random(seed)
    for _ in range(number):
        gold = some_text(draw, 4)
        yield (changed(draw, gold) if draw.random() < 0.6 else some_text(draw, 4)), gold


def generated_responses(number, seed=0):
    """Responses with tags and boxes that are often broken."""
    draw = random.Random(seed)
    for _ in range(number):
        yield some_text(draw, 14)


def generated_trajectories(number, seed=0):
    """Responses near the grammar of trajectories, with an accepted answer: whole, with pieces more or less, or torn."""
    draw = random.Random(seed)
    for _ in range(number):
        gold = some_text(draw, 3)
        calls = [f"<{tool}>{some_text(draw, 2)}</{tool}><result>{some_text(draw, 2)}</result>" for tool in TOOLS]
        box = draw.choice(["\\boxed{%s}", "\\boxed{1} or \\boxed{%s}", "\\boxed{{%s}}", "\\boxed{%s", "%s"])
        middle = "\r\n".join(draw.choices(calls, k=draw.randrange(4)))
        answer = box.replace("%s", changed(draw, gold))
        text = f"<think>{some_text(draw, 2)}</think>{middle}<answer>{answer}</answer>"
        for _ in range(draw.choice([0, 0, 1, 2])):
            start, length = draw.randrange(len(text)), draw.choice([0, 0, 1, 9])
            text = text[:start] + draw.choice(["", *TAGS, *PIECES]) + text[start + length :]
        yield text, gold


def some_text(draw, most):
    joint = draw.choice(["", " ", " ", ", ", "; "])
    return joint.join(draw.choice(PIECES) for _ in range(draw.randrange(most + 1)))


def changed(draw, text):
    where = draw.randrange(len(text) + 1)
    return draw.choice(
        [
            text,
            text.upper(),
            f" {text}\r\n",
            text.replace(" ", "  "),
            text[:where] + draw.choice(PIECES) + text[where:],
            text[:where] + text[where + 1 :],
            text.replace(",", ";"),
            f"${text}%",
            f"the {text}.",
            " ".join(text.split(" ")[::-1]),
            text.rpartition(",")[0],
            text.replace("1000", "1,000"),
            text.replace("5", "\uff15").replace("-", "\u2212"),
        ]
    )


def normal_words(text):
    """SQuAD: lower case, without ASCII punctuation and articles."""
    kept = "".join(each for each in text.lower() if each not in PUNCTUATION)
    words, word = [], ""
    for each in kept + " ":  # an article ends where a word of letters, digits and _ does
        if each.isalnum() or each == "_":
            word += each
            continue
        words.append("" if word in ("a", "an", "the") else word)
        words.append(each)
        word = ""
    return "".join(words).split()


def exact(answer, gold):
    return normal_words(answer) == normal_words(gold) != []


def f1(answer, gold):
    given, wanted = normal_words(answer), normal_words(gold)
    verdicts = ("yes", "no", "noanswer")
    if given != wanted and (" ".join(given) in verdicts or " ".join(wanted) in verdicts):
        return 0.0
    left, common = list(wanted), 0
    for word in given:
        if word in left:
            left.remove(word)
            common += 1
    if not common:
        return 0.0
    precision, recall = common / len(given), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def contains(answer, gold):
    wanted, given = " ".join(normal_words(gold)), " ".join(normal_words(answer))
    return wanted != "" and any(given[at : at + len(wanted)] == wanted for at in range(len(given)))


FULL_WIDTH = {chr(0xFF10 + digit): str(digit) for digit in range(10)}
SIGNS = FULL_WIDTH | {"\u2212": "-", "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-"}
SIGNS |= {"\uff0d": "-", "\uff0b": "+", "\uff0e": ".", "\uff0c": ",", "\uff05": "%", "\uff04": "$"}


def in_ascii(text):
    return "".join(SIGNS.get(each, each) for each in text)


def as_float(text):
    try:
        value = float(in_ascii(text))
    except ValueError:
        return None
    return value if value - value == 0 else None


def gaia(answer, gold):
    """GAIA: numbers by value without $, % and commas; lists element by element; texts without space and punctuation."""
    if as_float(gold) is not None:
        return gaia_number(answer) == as_float(gold)
    if "," not in gold and ";" not in gold:
        given, wanted = squeezed(answer), squeezed(gold)
        short = ["".join(each for each in text if each not in PUNCTUATION) for text in (given, wanted)]
        return given == wanted if short == ["", ""] else short[0] == short[1]
    given, wanted = answer.replace(";", ",").split(","), gold.replace(";", ",").split(",")
    if len(given) != len(wanted):
        return False
    for one, other in zip(given, wanted, strict=True):
        if as_float(other) is not None:
            if gaia_number(one) != as_float(other):
                return False
        elif squeezed(one) != squeezed(other):
            return False
    return True


def gaia_number(text):
    return as_float("".join(each for each in in_ascii(text) if each not in "$%,"))


def squeezed(text):
    return "".join(each for each in text if not each.isspace()).lower()


def last_box(text):
    """The content of the last box, by counting braces; None if there is none or it does not close."""
    start = None
    for at in range(len(text)):
        if text[at : at + 7] == "\\boxed{":
            start = at + 7
    if start is None:
        return None
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start:at]
    return None


def without_text(text):
    """Take away each `\\text{` and the brace that closes it, one pair after another."""
    at = 0
    while at < len(text):
        if text[at : at + 6] == "\\text{":
            depth, end = 1, at + 6
            while end < len(text) and depth:
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 1
            if not depth:
                text = text[:at] + text[at + 6 : end - 1] + text[end:]
                continue
        at += 1
    return text


def extracted(text):
    """The paper: last answer block and its last box, else the last box, else the last five lines."""
    block = None
    for at in range(len(text)):
        if text[at : at + 8] == "<answer>":
            end = at + 8
            while end < len(text) and text[end : end + 9] != "</answer>":
                end += 1
            block = text[at + 8 : end]
    box = last_box(block) if block is not None else None
    if box is None:
        box = last_box(text)
    if box is not None:
        return without_text(box).strip()
    return "\n".join(text.strip().splitlines()[-5:]).strip()


def places(text, piece):
    return [at for at in range(len(text)) if text[at : at + len(piece)] == piece]


def is_well_formed(text):
    """The format of the reward: counts of thoughts and answers, calls with their results in order, a box at the end."""
    at = {tag: places(text, tag) for tag in TAGS}
    if not at["<think>"] or len(at["<think>"]) != len(at["</think>"]):
        return False
    if (len(at["<answer>"]), len(at["</answer>"])) != (1, 1) or at["<answer>"] > at["</answer>"]:
        return False
    for tool in TOOLS:
        free = 0
        for start in at[f"<{tool}>"]:
            if start < free:
                continue  # inside of a block that was looked at
            end = min((each for each in at[f"</{tool}>"] if each > start), default=None)
            result = min((each for each in at["<result>"] if each > start), default=None)
            if end is None or result is None or end > result:
                return False
            free = min((each for each in at["</result>"] if each > result), default=None)
            if free is None:
                return False
    answer = text[at["<answer>"][0] : at["</answer>"][0]]
    return places(answer, "\\boxed{") != [] and "}" in answer


def paper_reward(text, golds):
    """-1 for a broken format or box; else the best F1, and a tenth more if it is positive and both tools were used."""
    if not is_well_formed(text):
        return -1.0
    box = last_box(text[places(text, "<answer>")[0] : places(text, "</answer>")[0]])
    if box is None:
        return -1.0
    best = max(f1(box, gold) for gold in golds)
    return best + 0.1 if best > 0 and all(f"</{tool}>" in text for tool in TOOLS) else best
