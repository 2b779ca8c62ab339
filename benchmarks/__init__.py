"""Repeatable measurements; run one with `python -m benchmarks.NAME`."""
