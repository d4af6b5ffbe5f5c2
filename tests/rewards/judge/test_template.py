"""A template that could give no verdict is refused, and its digest names all that it says."""

from dataclasses import replace

import pytest

from aepo_lightning.errors import ConfigError
from aepo_lightning.rewards.judge import TEMPLATES, JudgeTemplate

FIELDS = {"reason": "Why.", "verdict": "Which."}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"fields": {"verdict": "Which."}}, "`fields` .* must hold reason, but got verdict"),
        ({"fields": {}}, "must hold reason, verdict, but got none"),
        ({"percent_fields": ("sure",)}, "must hold sure"),
        ({"reason_field": "verdict"}, "`verdict_field` .* must be a field of its own"),
        ({"percent_fields": ("verdict",)}, "`verdict_field` .* must be a field of its own"),
        ({"words": {"yes": "correct"}}, "`words` .* must mean correct, incorrect"),
        ({"words": {"yes": "correct", "no": "wrong", "x": "incorrect"}}, "`words` .* must mean"),
    ],
)
def test_what_could_give_no_verdict_is_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        JudgeTemplate(**({"name": "own", "instructions": "Judge.", "fields": FIELDS} | settings))


def test_the_digest_follows_what_is_said_and_not_the_name():
    paper = TEMPLATES["paper"]
    assert replace(paper, name="other").digest == paper.digest
    changed = [{"instructions": "Judge."}, {"fields": FIELDS}, {"words": {"correct": "correct", "no": "incorrect"}}]
    assert len({paper.digest, *(replace(paper, **each).digest for each in changed)}) == 4
    assert TEMPLATES["hle"].digest == TEMPLATES["browsecomp"].digest, "BrowseComp's judge is that of HLE"


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_the_schema_asks_for_all_fields_in_their_order_and_no_others(template):
    schema = template.schema()
    assert [*schema["properties"]] == schema["required"] == [*template.fields]
    assert schema["additionalProperties"] is False
    assert schema["properties"][template.verdict_field]["enum"] == [*template.words]
    assert [*template.fields].index(template.reason_field) < [*template.fields].index(template.verdict_field)
