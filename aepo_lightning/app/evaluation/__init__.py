"""The command `aepo-eval`: numbers of a run or of any model, and what is made of them afterwards."""
