import pytest

from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.reward import RewardInput
from aepo_lightning.policy.tokenizers import build_byte_tokenizer, build_word_tokenizer
from aepo_lightning.rewards.paper import PaperReward
from aepo_lightning.tasks.arithmetic import ArithmeticTask
from aepo_lightning.tasks.trail import TrailTask

TRAIL = TrailTask(demonstration_quality=1.0)
CASES = {
    "trail": (TRAIL, build_word_tokenizer(TRAIL.words)),
    "arithmetic": (ArithmeticTask(demonstration_error_rate=0.0), build_byte_tokenizer()),
}


def respond(demonstration, tokenizer):
    """Write a demonstration as the rollout would, results in their tags, and pass it through the tokenizer."""
    ids = []
    for turn in demonstration.turns:
        text = turn.text if turn.source is SegmentSource.POLICY else f" <result>\n{turn.text}\n</result>"
        ids += tokenizer.encode(text)
    return RewardInput(
        question=demonstration.question,
        response_text=tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True),
    )


@pytest.mark.parametrize("task, tokenizer", list(CASES.values()), ids=list(CASES))
def test_flawless_demonstrations_earn_the_full_reward_of_the_paper(task, tokenizer):
    for index in range(20):
        output = PaperReward().score(respond(task.demonstration(index), tokenizer))
        assert output.is_well_formed
        assert output.is_correct
        assert output.reward == 1.0
