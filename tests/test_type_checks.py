"""What the suite checks of annotations: with and without shapes of arrays, of functions and of dataclasses."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.ops.masked import masked_sum
from tests.support.type_checks import checked

check = checked(typechecker=beartype)
WRONG = (BeartypeCallHintViolation, TypeCheckError)


@check
def half(number: int) -> int:
    return number // 2 if number else "none"


@check
def scaled(values: Float[Tensor, " batch"], by: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    return values * by if by.any() else values[:1]


@check
def applied(function: Callable[[Float[Tensor, " batch"]], int], *arguments: int) -> list[int]:
    return [function(torch.zeros(each)) for each in arguments]


@check
def counted(limit: int) -> Iterator[int]:
    yield from range(limit)


@check
@dataclass(frozen=True, slots=True)
class Point:
    place: "int"
    name: str = ""


@check
@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    place: int

    @check
    def moved(self, by: int) -> "Plain":
        return Plain(place=self.place + by)


@check
@dataclass
class Columns:
    one: Float[Tensor, " batch"]
    other: Float[Tensor, " batch"]


TWO, THREE = torch.ones(2), torch.ones(3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: half("a"),
        lambda: half(0),
        lambda: scaled(TWO, THREE),
        lambda: scaled(TWO, 0 * TWO),
        lambda: scaled(TWO.int(), TWO),
        lambda: applied(len, "a"),
        lambda: list(counted("a")),
        lambda: Point("a"),
        lambda: Plain(place="a"),
        lambda: Plain(place=1).moved("a"),
        lambda: Columns(TWO, THREE),
        lambda: SamplingParams(max_tokens="a"),
        lambda: masked_sum(TWO[None], THREE[None].bool()),
    ],
)
def test_what_an_annotation_excludes_is_refused(call):
    with pytest.raises(WRONG):
        call()


def test_what_annotations_allow_passes():
    assert half(4) == 2
    assert scaled(TWO, TWO).tolist() == [1, 1]
    assert applied(len, 1, 2) == [1, 2]
    assert list(counted(2)) == [0, 1]
    assert Point(1, "a").name == "a"
    assert Plain(place=1).moved(2) == Plain(place=3)
    assert Columns(TWO, TWO).one is TWO


@pytest.mark.usefixtures("without_type_checks")
def test_nothing_is_checked_where_a_test_asks_for_that():
    assert half(0) == "none"
    assert scaled(TWO, THREE[:1]).shape == (2,)
    assert Plain(place="a").place == "a"
