"""Measurements. Each module runs as `python -m benchmarks.NAME` and prints one JSON line at the end."""
