"""The seams of the library, each beside its data: one file for each family of swappable parts.

tool.py         what a tool is, what it is called with and what it answers; all that an author of tools reads
question.py     questions, where they come from, worked demonstrations
reward.py       what a trajectory is worth, and what finding out may cost
reward_term.py  a term of a reward
checker.py      what is found about an answer
overlong.py     how far a trajectory is in the lengths that are punished
engine.py       what generates tokens
generation.py   how to sample, and what was sampled
chat_format.py  how prompts, calls and results are written
tree.py         the rollout tree
branching.py    branch decisions and the split of the budget
objective.py    advantages, credit of turns, surrogate losses
advantage.py    how advantages and credit are asked for, and what they must answer
batch.py        trajectories as tensors
policy.py       where the policy comes from

Callers are typed with the Protocols, never with a class of a family. Anything that has the methods fits; nothing needs
to be registered.
"""
