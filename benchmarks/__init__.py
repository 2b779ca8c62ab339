"""Repeatable measurements, one a file; README.md beside them says how to run each."""
