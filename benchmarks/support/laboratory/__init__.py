"""The exact-gradient laboratory: a world small enough to enumerate, in which the library's own code is measured.

world.py      places, exits, two quests; the tool that is called and the reward that is paid
policy.py     a softmax policy with a table of logits, which the loss scores like any other network
engine.py     the same table as an engine
truth.py      value and gradient by dynamic programming, and every trajectory with its probability
updates.py    trees grown and turned into first optimiser steps by the library, at random
exact.py      the expected first step of independent sampling, by enumeration
estimates.py  direction, bias and variance of updates, with standard errors
variants.py   every preset, and AEPO with one part changed
cases.py      what is measured one after the other
report.py     the tables of docs/laboratory.md
branching_world.py   another world, of letters, and a tape that runs its rollouts through all their outcomes
enumerated_value.py  exact expectations of value and gradient over every tree, under each way to branch

Everything that decides (sampler, allocator, branch rule, estimator, shaping, objective, aggregation) is the library's.
"""
