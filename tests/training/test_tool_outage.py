"""A tool that stays away stops a whole run, by name; what was finished is kept, and the run goes on once it is back."""

from functools import partial

import lightning as L
import pytest
import torch
from typing_extensions import override

from aepo_lightning.callbacks import AtomicCheckpoint
from aepo_lightning.errors import ToolOutageError, ToolUnavailableError
from aepo_lightning.rollout import RolloutJournal
from aepo_lightning.tools import ToolRuntime
from tests.support.builders import Biased
from tests.support.training import flat, make_datamodule, make_module, make_run, small_policy


class Provider(L.Callback):
    """What stands behind a tool: down after so many calls, unless that is None. Counts them, also by iteration."""

    def __init__(self, max_calls=None):
        self.max_calls = max_calls
        self.num_calls = 0
        self.by_iteration = []

    async def search(self, query: str) -> str:
        """Find something."""
        if self.num_calls == self.max_calls:
            raise ToolUnavailableError("The provider is down.")
        self.num_calls += 1
        return f"nothing about {query}"

    @override
    def on_train_epoch_start(self, trainer, pl_module):
        self.by_iteration.append(self.num_calls)


def a_run(folder, provider):
    policy = Biased("<search> find </search>", small_policy())
    tools = ToolRuntime(tools=[provider.search], max_unavailable_s=0.0, on_outage="stop")
    return make_run(
        folder,
        make_module(policy, optimizer=partial(torch.optim.AdamW, lr=1e-6)),
        make_datamodule(policy, tools=tools, journal=RolloutJournal(folder / "rollouts")),
        callbacks=[provider, AtomicCheckpoint(folder / "checkpoints", every_n_epochs=10)],
        max_epochs=3,
    )


@pytest.mark.slow
def test_a_run_stops_with_a_message_and_goes_on_from_where_it_stopped(tmp_path):
    provider = Provider()
    whole = a_run(tmp_path / "whole", provider).fit()
    _, until, after = provider.by_iteration
    assert until < after, "the last iteration calls the tool"
    message = r"Tool\(search\) must be available.*The provider is down.*ckpt_path=last"
    with pytest.raises(ToolOutageError, match=message):
        a_run(tmp_path, Provider(until)).fit()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["iteration0001.ckpt", "last.ckpt"], "two iterations were over, and none was due"
    assert (tmp_path / "rollouts" / "train-00002-rank0.steps.jsonl").stat().st_size > 0
    again = a_run(tmp_path, Provider()).fit(tmp_path / "checkpoints" / "last.ckpt")
    assert torch.equal(flat(again.network.parameters()), flat(whole.network.parameters()))
    assert not (tmp_path / "rollouts" / "train-00002-rank0.steps.jsonl").exists()
