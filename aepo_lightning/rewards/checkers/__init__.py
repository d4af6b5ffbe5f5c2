r"""Rules that compare an answer with the accepted ones: `AnswerChecker`s of `contracts/checker.py`.

    exact_match.py          `ExactMatch`: the same words, or numbers by value
    token_f1.py             `TokenF1`: the share of words in common
    substring_accuracy.py   `SubstringAccuracy`: an accepted answer occurs in the given one
    multiple_choice.py      `MultipleChoice`: letters, the texts that they stand for, sentences that name them
    gaia.py xbench.py       `GaiaMatch`, `XBenchMatch`,
    hle.py browsecomp.py    `HLEMatch`, `BrowseCompMatch`: the rules of these benchmarks
    math_equivalence.py     `MathEquivalence`: the same by mathematics, in worker processes
    math_worker.py          what calls `math-verify` there
    accepted.py exact_form.py numbers.py            what they share

All but the last kind are arithmetic on short texts, which can neither wait nor hang, and say so (`is_immediate`).
"""

from aepo_lightning.rewards.checkers.browsecomp import BrowseCompMatch
from aepo_lightning.rewards.checkers.exact_match import ExactMatch
from aepo_lightning.rewards.checkers.gaia import GaiaMatch
from aepo_lightning.rewards.checkers.hle import HLEMatch
from aepo_lightning.rewards.checkers.math_equivalence import MathEquivalence
from aepo_lightning.rewards.checkers.multiple_choice import MultipleChoice
from aepo_lightning.rewards.checkers.substring_accuracy import SubstringAccuracy
from aepo_lightning.rewards.checkers.token_f1 import TokenF1
from aepo_lightning.rewards.checkers.xbench import XBenchMatch

__all__ = [
    "BrowseCompMatch",
    "ExactMatch",
    "GaiaMatch",
    "HLEMatch",
    "MathEquivalence",
    "MultipleChoice",
    "SubstringAccuracy",
    "TokenF1",
    "XBenchMatch",
]
