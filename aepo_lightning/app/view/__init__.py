"""The command `aepo-view`: rollout trees as pages that explain themselves.

command.py      the command line
folder.py       what is read of a run or an evaluation besides its trees
decisions.py    why a chain branched or did not, and what other settings would have done
questions.py    a question in one row: how far its trajectories differ, and where they part
trees.py        a tree as plain values
updates.py      what the update made of each token: its steps made again, and kept beside the trees
token_text.py   the text of each token
pages.py        plain values as one HTML file
server.py       the pages on this machine, made when they are asked for
page/           what the browser runs: plain JavaScript and CSS
"""
