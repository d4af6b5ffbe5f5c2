"""A folder of configuration files of one's own: whatever is wrong with it is one message with the file."""

import pytest

from aepo_lightning.app.command import explain_bad_overrides

FILES = {
    "mine.yaml": b"_target_: my_rewards.contains\n",
    "open.yaml": b"a: [1\nb: 2\n",
    "twice.yaml": b"a: 1\na: 2\n",
    "bytes.yaml": b"\xff\xfe",
    "chain.yaml": b"defaults:\n  - nothere\n",
}


@pytest.fixture
def folder(tmp_path):
    rewards = tmp_path / "it's mine, [really] x=1" / "reward"
    rewards.mkdir(parents=True)
    for name, content in FILES.items():
        (rewards / name).write_bytes(content)
    return str(rewards.parent)


def test_an_option_of_the_folder_has_no_problem(folder):
    assert explain_bad_overrides(["--config-dir", folder, "reward=mine"]) is None


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["reward=min"], "Did you mean `mine`?"),
        (["reward=mine", "trainer.max_epoch=3"], "Did you mean `trainer.max_epochs`"),
        (["reward=open"], "reward/open.yaml, line 2 must be YAML, but is not: expected ',' or ']'"),
        (["reward=twice"], "reward/twice.yaml, line 2 must be YAML, but is not: found duplicate key a. Repair it."),
        (["reward=bytes"], "reward/bytes.yaml must be UTF-8, but is not"),
        (["reward=chain"], "nothere"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_in_or_beside_a_file_of_the_folder_is_one_message(folder, words, named):
    problem = explain_bad_overrides(["--config-dir", folder, *words])
    assert named in problem
    assert len(problem.splitlines()) <= 3


@pytest.mark.parametrize("kind", ["does not exist", "is a file"])
def test_what_is_no_folder_is_named(tmp_path, kind):
    place = tmp_path / "mine"
    if kind == "is a file":
        place.touch()
    problem = explain_bad_overrides(["--config-dir", str(place), "reward=mine"])
    assert problem.startswith(
        f"`--config-dir` must name a folder with folders such as reward/ in it, but {place} {kind}"
    )
