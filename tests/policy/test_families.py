"""docs/models.md says of every family what trainer, packing and embedded engine make of it, and is right."""

import re
from pathlib import Path

import pytest

from aepo_lightning.policy.output_head import measure_logit_map
from tests.support.families import EXACT, FAMILIES, REASONS, build_policy, engine, trainer_and_packing

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
QUICK = ("cohere", "gemma2", "gpt2", "granite", "phi")
EVERY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=name) for name in FAMILIES]


def test_the_table_lists_every_family_with_its_verdicts():
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in DOCS.read_text().splitlines() if row[:3] == "| `"
    ]
    found = {cells[0].strip("`"): tuple(cells[1:]) for cells in rows if len(cells) == 5}
    assert found == {
        name: (family.head, *map(written, (family.trainer, family.packing, family.engine)))
        for name, family in FAMILIES.items()
    }


def written(verdict):
    return verdict if verdict == EXACT else f"refused: {verdict}"


def check(found, verdict):
    if verdict == EXACT:
        assert found == EXACT
    else:
        assert re.search(REASONS[verdict], found), found


@pytest.mark.parametrize("name", EVERY)
def test_each_family_is_computed_as_transformers_does_or_refused_as_the_table_says(name):
    family = FAMILIES[name]
    policy = build_policy(name, family)
    trainer, packing = trainer_and_packing(policy)
    check(trainer, family.trainer)
    check(packing, family.packing)
    check(engine(policy), family.engine)


@pytest.mark.parametrize("name", EVERY)
def test_heads_are_what_the_table_calls_them(name):
    family = FAMILIES[name]
    if family.trainer == EXACT:
        model = build_policy(name, family).build_model()
        logit_map = measure_logit_map(model)
        kinds = {
            "scaled": logit_map.scale != 1,
            "capped": logit_map.cap is not None,
            "biased": model.lm_head.bias is not None,
        }
        assert " and ".join(kind for kind, is_so in kinds.items() if is_so) == family.head.replace("matrix", "")
