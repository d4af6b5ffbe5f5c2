"""The command `aepo-regrow`: a trajectory continued from any node of a saved tree, as it was or with an edit.

command.py      the command line
start.py        from a node and an edit to where a chain goes on
tools.py        results from the journal; other calls to the run's own tools, or refused
regrown.py      chains grown on with the weights of the run, and how they compare with the saved one
told.py         old and new side by side, on a terminal or as one JSON object
page.py         both in one tree, as a page of `aepo-view`
"""
