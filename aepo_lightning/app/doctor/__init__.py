"""`aepo-doctor`: looks at a configuration and this machine before a run, a line for each thing.

command.py     the command line
finding.py     what a check says, and how checks are run
subject.py     what they look at: the configuration and its parts, each built once, when it is first asked for
machine.py     versions, devices, memory, disk, permission to write
services.py    tools, their sandbox, what they reach, judges
answers.py     questions, round trip of a perfect answer, what the reward tells apart
policy.py      log-probs of engine and trainer, publication of weights, masks, and what keeps a policy from learning

A check is a function of the subject. Most call what a run itself calls at its start and in its first iterations.
"""
