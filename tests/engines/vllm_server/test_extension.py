"""What runs inside a server's workers, here inside an engine of this process: the update path, our sampler's lists."""

import pytest
import torch
from safetensors.torch import save_file

from tests.support.extras import needs
from tests.support.vllm_parts import assert_exact, make_engine, one, params, prompt, vllm_policy

pytestmark = pytest.mark.filterwarnings("ignore:::vllm", "ignore::DeprecationWarning", "ignore::FutureWarning")
needs("vllm", "vllm")


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def workplace(request):
    """An engine whose worker has the extension, and a function that makes policies for it."""

    def policy(seed=0):
        return vllm_policy(seed=seed, tie_word_embeddings=request.param)

    engine = make_engine(
        policy(),
        worker_extension_cls="aepo_lightning.engines.vllm_server.extension.Extension",
        weight_transfer_config={"backend": "aepo_file"},
    )
    one(engine)
    llm(engine).init_weight_transfer_engine({"init_info": {}})
    yield engine, policy
    engine.close()


def llm(engine):
    return engine._core._llm


def files(policy, folder):
    weights = list(policy.build_model().named_parameters())
    paths = []
    for number in range(2):  # layers are split over two files
        paths.append(folder / f"{number}.safetensors")
        save_file({name: tensor.detach() for name, tensor in weights[number::2]}, paths[-1])
    return paths


def update(engine, paths):
    native = llm(engine)
    native.start_weight_update()
    for path in paths:
        native.update_weights({"update_info": {"path": str(path)}})
    native.finish_weight_update("new")
    native.reset_prefix_cache()


def test_weights_from_files_are_seen(workplace, tmp_path):
    engine, policy = workplace
    for seed in (1, 2):
        update(engine, files(policy(seed), tmp_path))
        assert_exact(policy(seed).build_model(), prompt(40), one(engine, prompt(40)))


def test_an_update_that_broke_off_half_way_is_repaired_by_the_next(workplace, tmp_path):
    engine, policy = workplace
    first, _ = files(policy(1), tmp_path)
    llm(engine).start_weight_update()
    llm(engine).update_weights({"update_info": {"path": str(first)}})
    with pytest.raises(FileNotFoundError):
        llm(engine).update_weights({"update_info": {"path": str(tmp_path / "missing.safetensors")}})
    update(engine, files(policy(2), tmp_path))
    assert_exact(policy(2).build_model(), prompt(40), one(engine, prompt(40)))


def test_a_worker_says_whether_it_can_read_a_file(workplace, tmp_path):
    engine, _ = workplace
    (tmp_path / "there").write_text("")
    assert llm(engine).collective_rpc("aepo_check_file", args=(str(tmp_path / "there"),)) == [{"problem": ""}]
    ((problem),) = llm(engine).collective_rpc("aepo_check_file", args=(str(tmp_path / "not"),))
    assert "No such file" in problem["problem"]


def test_the_sampled_token_is_listed_once_and_its_entropy_stays(workplace):
    engine, policy = workplace
    engine.load_weights(policy().build_model().named_parameters(), 0)
    plain = one(engine, prompt(6), params(8, num_top_logprobs=5))
    assert llm(engine).collective_rpc("aepo_install_sampler") == [{"entropies": "exact"}]
    sampler = llm(engine).llm_engine.model_executor.driver_worker.worker.model_runner.sampler
    output = []
    forward = sampler.forward
    sampler.forward = lambda *args, **kwargs: output.append(forward(*args, **kwargs)) or output[-1]
    listed = one(engine, prompt(6), params(8, num_top_logprobs=5))
    sampler.forward = forward
    assert listed.token_ids == plain.token_ids
    assert listed.entropies == plain.entropies
    for each in output:
        (ids,) = each.logprobs_tensors.logprob_token_ids
        assert ids.shape == (5,)  # the sampled token and the four largest others
        assert len(torch.unique(ids)) == 5
        assert ids[0] == each.sampled_token_ids[0, 0]
