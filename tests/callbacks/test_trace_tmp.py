import lightning as L
from aepo_lightning.callbacks import *
from lightning.pytorch.callbacks import Callback

class Trace(Callback):
    def __getattribute__(self, name):
        if name.startswith("on_") and ("epoch" in name or name.startswith(("on_train","on_val","on_fit"))) :
            print("HOOK", name)
        return super().__getattribute__(name)

def test_trace(make_run, tmp_path):
    cbs = [BranchPenalty(0.5), EntropyMonitor(), EntropyGuard(), RolloutLogger(1,2), Throughput(), Trace()]
    r = make_run(cbs, max_epochs=2)
    r.fit()
    for row in r.logger.rows: print(row)
    print(open(tmp_path/"trajectories.md").read()[:3000])
    print(list(tmp_path.rglob("*")))
    cbs = [BranchPenalty(0.5), EntropyMonitor(), EntropyGuard(), RolloutLogger(1,2), Throughput(), Trace()]
    print("RESUME")
    r = make_run(cbs, max_epochs=3)
    r.fit(str(tmp_path/"checkpoints/last.ckpt"))
    for row in r.logger.rows: print(row)
    print(cbs[1].curves, cbs[0].penalty, cbs[4].totals)
