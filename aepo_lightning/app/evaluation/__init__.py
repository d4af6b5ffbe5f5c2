"""The command `aepo-eval`: numbers of a run or of any model, and what is made of them afterwards.

command.py             the words, and the table of sub-commands
composing.py           configurations of evaluations, and which benchmarks there are
folder.py              the folder of an evaluation, its lock and its configuration
own_command.py         a run's own held-out questions: settings, and the table beside what training printed
own_questions.py       those questions, asked as training asks them
run_policy.py          the policy of a run or of a checkpoint
benchmarks.py          a model on benchmarks
judges.py              who looks at the answers
training_benchmarks.py benchmarks that a run is asked while it trains
rejudge.py replay.py   the same trajectories: other verdicts, or token by token
saved_tools.py         what the tools said of themselves
show.py compare.py power.py judge_check.py   numbers and what they are worth; tables.py and published.py serve them
"""
