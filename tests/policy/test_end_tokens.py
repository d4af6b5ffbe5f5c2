"""What ends a generation: the tokens that tokenizer and model name together, in files, engines and exported folders."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from aepo_lightning.contracts.generation import FinishReason, SamplingParams
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.engines.vllm.requests import RequestStyle
from aepo_lightning.engines.vllm_server.answer import TokenQuery, request_body
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.policy.end_tokens import eos_token_ids
from aepo_lightning.policy.hf_folder import FolderWriter
from aepo_lightning.policy.source import PretrainedPolicy
from tests.support.builders import Biased, tiny_policy


class Named:
    """A policy of which only these names are known."""

    def __init__(self, tokenizer=1, generation=None, config=None):
        self.tokenizer, self.config = SimpleNamespace(eos_token_id=tokenizer), SimpleNamespace(eos_token_id=config)
        if generation != "absent":
            self.generation_config = SimpleNamespace(eos_token_id=generation)

    def build_model(self):
        raise AssertionError("nobody asks")

    def find_weights(self):
        return None


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Named(), (1,)),
        (Named(generation=7), (1, 7)),
        (Named(generation=[9, 1, 7]), (1, 7, 9)),
        (Named(generation="absent", config=[5, 6]), (1, 5, 6)),
        (Named(tokenizer=None, generation=3), (3,)),
        (Named(tokenizer=None), ()),
    ],
)
def test_the_tokens_of_tokenizer_and_model_together_end_a_generation(policy, expected):
    assert eos_token_ids(policy) == expected


@pytest.mark.parametrize("wrong", ["<eos>", True, -1, [2, None]])
def test_what_is_no_token_id_is_refused(wrong):
    with pytest.raises(DataError, match="must be a token id or a list of them"):
        eos_token_ids(Named(generation=wrong))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "policy"
    policy = tiny_policy()
    FolderWriter(target=path, source=policy).write_model(policy.build_model().named_parameters())
    return path


def with_ends(folder, ends, **options):
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": ends}))
    return PretrainedPolicy(str(folder), **options)


def test_a_folder_says_what_ends_a_message_and_a_user_may_add_to_it(folder):
    assert eos_token_ids(with_ends(folder, [1, 40])) == (1, 40)
    policy = with_ends(folder, 40, eos_tokens=["</answer>"])
    assert eos_token_ids(policy) == (1, 40, policy.tokenizer.convert_tokens_to_ids("</answer>"))
    with pytest.raises(ConfigError, match="`eos_tokens` must be tokens of"):
        eos_token_ids(with_ends(folder, 40, eos_tokens=["nothing like it"]))


def test_an_exported_folder_ends_where_its_policy_did(folder, tmp_path):
    policy = with_ends(folder, 40, eos_tokens=["</answer>"])
    FolderWriter(target=tmp_path / "next", source=policy).write_model(policy.build_model().named_parameters())
    assert eos_token_ids(PretrainedPolicy(str(tmp_path / "next"))) == eos_token_ids(policy)


def test_the_embedded_engine_stops_at_each_of_them():
    policy = Biased("abcd", tiny_policy(tie_word_embeddings=False))
    policy.generation_config = SimpleNamespace(eos_token_id=[policy.ids[2]])
    engine = TransformersEngine(policy, max_num_seqs=1, max_model_len=32)
    found = asyncio.run(engine.generate(policy.ids[:1], SamplingParams(max_tokens=8, temperature=0.0)))
    assert (found.token_ids, found.finish_reason) == (policy.ids[1:3], FinishReason.EOS)


def test_a_server_is_told_all_of_them():
    style = RequestStyle(vocab_size=50, eos_token_ids=(1, 7), max_model_len=20)
    query = TokenQuery(token_ids=[3], params=SamplingParams(max_tokens=2), max_tokens=2)
    assert request_body(query, style)["sampling_params"]["stop_token_ids"] == [1, 7]
