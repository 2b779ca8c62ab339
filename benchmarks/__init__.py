"""Repeatable measurements, each a module to be run; docs/speed.md and docs/reliability.md have the figures."""
