"""What stands behind `train.py`: composing parts, planning, the three stages and their report.

main.py         the command: overrides, plan, run
build.py        configuration to objects; the only place that instantiates
stages.py       cold start, AEPO, evaluation
report.py       the closing table
run_folder.py   where a run writes, and what `ckpt_path=last` means
plan.py         memory and batch arithmetic without weights; lists the files of its parts
overrides.py    messages for overrides that do not fit
"""
