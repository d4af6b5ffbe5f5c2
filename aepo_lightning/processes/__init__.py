"""Python functions in processes of their own, which are warm, end at a deadline whatever they do, and are replaced.

calls.py        `ProcessCalls`: what tools and rewards call functions through
program.py      what a process has to load to find a function
fork_server.py  the near side: one fork server for each program, and its workers
child.py        the far side, which knows the standard library only
told_error.py   what a function raised there, made again here
errors.py       what goes wrong with the processes themselves
"""
