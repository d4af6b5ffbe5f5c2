"""What `benchmarks.algorithms` is made of: what is run, what a run leaves, curves, statistics, claims and figures."""
