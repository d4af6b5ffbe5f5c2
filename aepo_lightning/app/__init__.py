"""What stands behind `train.py`: composing parts, planning, the three stages and their report.

command.py          the command line: overrides, one message for a mistake
words.py            words of a shell as Hydra reads them
overrides.py        messages for overrides that do not fit
config_dir.py       a folder of configuration files of one's own
sweep.py            the jobs of `--multirun`, and their table
build.py            configuration to objects; the only place that instantiates
user_parts.py       parts of a user in the configuration: functions, targets that are not there, callbacks that fail
stages.py           cold start, AEPO, evaluation
freed_memory.py     keeps freed memory, on a CPU
living_objects.py   spares the garbage collector what lives to the end
run_folder.py       where a run writes, and what `ckpt_path=last` means
run_lock.py         one run at a time in a folder
occupied_folder.py  what a run finds in its folder: nothing, what it continues, or what it must not touch
differences.py      what differs from the saved configuration: applied, ignored, refused
made_of.py          digests of what a stage's product was made of
paths.py            paths as a shell reads them, and disks that refuse
report.py           the closing table
saved_config.py     configurations on disk, brought to the present form
saved_run.py        what a run has left in its folder
kept_weights.py     the weights that a run has kept, and which come nearest
node.py             places in saved trees, by one name in all commands
targets.py          what a configuration that came with a folder may call
export.py replay.py the other commands
smollm2.py          fetches a small pretrained model from the package index
plan/               memory and batch arithmetic without weights
evaluation/         aepo-eval
regrow/             aepo-regrow: trajectories continued from a node
"""
