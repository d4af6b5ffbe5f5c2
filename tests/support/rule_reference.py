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
